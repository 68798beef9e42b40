"""From photos to files: any kind of image, every product, sensible names, nothing overwritten in silence."""

import os

import numpy as np
import pytest
import timm
from PIL import Image
from torch import nn

from secvit import files, runs
from secvit.cli import main
from secvit.draw import panels
from secvit.vis import View, cluster_page, cluster_photo, cluster_photos, pages, view
from secvit.vis.clusters import UNTRAINED
from tests.vis.make import photo, secvit_nano


@pytest.fixture(autouse=True)
def thumbnails(monkeypatch):
    monkeypatch.setattr(panels, "PANEL_AREA", 80 * 60)
    monkeypatch.setattr(pages, "CELL", (80, 60))
    monkeypatch.setattr(view, "FRAME_AREA", 80 * 60)


@pytest.fixture
def small(monkeypatch):
    network = secvit_nano()
    monkeypatch.setattr(runs, "network", lambda run, model=None: network)
    return network


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    photo().save(path)
    return path


def cluster(*words):
    return main(["cluster", "secvit_nano", *map(str, words), "--size", "32"])


# -- one photo ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "passes"), [
    ({}, 1), ({"gif": True, "compare": True}, 1), ({"gradcam": True, "gif": True, "compare": True}, 2),
    ({"metrics": True}, 4), ({"gradcam": True, "gif": True, "compare": True, "metrics": True}, 5),
], ids=lambda value: "+".join(value) or "clusters" if isinstance(value, dict) else str(value))  # fmt: skip
def test_a_photo_goes_through_the_network_once_for_all_pictures(small, file, tmp_path, wanted, passes):
    """Grad-CAM needs gradients, a second pass; stability in the metrics is that of three changed photos."""
    seen = []
    first = next(layer for layer in small.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_pre_hook(lambda *_: seen.append(1))
    cluster_photos([file], tmp_path / "out", View(run="secvit_nano", stages=[0], size=32), **wanted)
    assert len(seen) == passes


def test_pictures_drawn_together_are_those_drawn_alone(small, file, tmp_path):
    of_first = View(run="secvit_nano", size=32, block=0)
    cluster_photos([file], tmp_path / "alone", of_first)
    cluster_photos([file], tmp_path / "together", of_first, gif=True)
    one, other = (Image.open(tmp_path / folder / "photo_clusters.png") for folder in ("alone", "together"))
    assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "I;16", "1"])
def test_any_kind_of_image_gives_a_picture(small, tmp_path, mode):
    path = tmp_path / "in.tif"
    Image.new(mode, (37, 21)).save(path)
    with Image.open(cluster_photo(path, tmp_path / "out.png", gradcam=True)) as out:
        assert out.width > 200


def test_a_turned_photo_is_upright(small, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(60, 30).save(tmp_path / "turned.jpg", exif=exif)
    cluster_photo(tmp_path / "turned.jpg", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as turned:
        photo(60, 30).transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
        with Image.open(cluster_photo(tmp_path / "upright.png", tmp_path / "other.png")) as upright:
            assert turned.size == upright.size


def test_one_pixel_gives_a_picture(small, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    assert cluster_photo(tmp_path / "one.png", tmp_path / "out.png", gradcam=True).is_file()


def test_a_plain_vit_gets_its_clusters(file, tmp_path, monkeypatch):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=32, num_heads=2)
    monkeypatch.setattr(runs, "network", lambda run, model=None: vit.eval())
    asked = View("vit_tiny_patch16_224", cluster_size=8, partition="tree", near=2, far=True)
    made = cluster_photos([file], tmp_path / "vit.png", asked, gradcam=True)
    clustering = vit.secvit_patch.clustering
    assert made.written and (clustering.cluster_size, clustering.near, clustering.far) == (8, 2, True)
    with Image.open(made.written[0]) as out:
        assert out.width > 3 * 80  # the photo and two blocks


def test_an_animation_goes_through_all_blocks_that_have_clusters(small, file, tmp_path):
    made = cluster_photos([file], tmp_path / "out.png", View(num_clusters=2), gif=True)
    assert made.written == [tmp_path / "out.png", tmp_path / "out.gif"]
    with Image.open(tmp_path / "out.gif") as opened:
        assert opened.n_frames == 4 and opened.info["duration"] == view.FRAME_MS
        frames = []
        for i in range(4):
            opened.seek(i)
            frames.append(np.asarray(opened.convert("RGB")))
    assert all((a != b).any() for a, b in zip(frames[1:], frames, strict=False))
    with pytest.raises(ValueError, match="none of the chosen layers has more than one cluster"):
        cluster_photos([file], tmp_path, View(stages=[3]), gif=True)


# -- names -------------------------------------------------------------------------------------


def test_a_default_name_never_replaces_a_file(small, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(cluster_photo(file)) for _ in range(3)]
    assert names == ["photo_clusters.png", "photo_clusters_2.png", "photo_clusters_3.png"]
    again = cluster_photos([file], ".", compare=True, gif=True).written
    assert [path.name for path in again] == ["photo_clusters_4.png", "photo_clusters_4.gif", "photo_partitions_4.png"]


def test_many_photos_need_a_folder_and_a_photo_is_never_replaced(small, file, tmp_path):
    photo().save(tmp_path / "photos" / "other.png")
    with pytest.raises(ValueError, match="one picture for 2 photos; name a folder"):
        cluster_photos([file.parent], tmp_path / "out.png")
    with pytest.raises(ValueError, match="is the photo itself"):
        cluster_photos([file], file)
    with pytest.raises(ValueError, match="choose another output"):
        cluster_photos([file.parent], file.parent)
    made = cluster_photos([file.parent], tmp_path / "new")
    assert [path.name for path in made.written] == ["other_clusters.png", "photo_clusters.png"]


@pytest.mark.parametrize("name", ["nowhere/out.png", "photos/photo.png/out.png", "out.exe", "photos/photo.png/out"])
def test_an_impossible_output_is_refused_before_any_work(file, tmp_path, monkeypatch, name):
    monkeypatch.setattr(view, "opened", lambda *_: pytest.fail("read before asking"))
    monkeypatch.setattr(runs, "network", lambda *_: pytest.fail("worked before asking"))
    with pytest.raises(ValueError, match=r"folder|format|write"):
        cluster_photo(file, tmp_path / name)


def test_a_failed_save_keeps_the_old_picture_and_leaves_nothing(small, file, tmp_path, monkeypatch):
    output = tmp_path / "out.png"
    output.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(ValueError, match="No space left"):
        cluster_photo(file, output)
    assert output.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == before


def test_the_temporary_name_is_beside_the_picture(small, file, tmp_path, monkeypatch):
    moved = []
    real = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (moved.append((a, b)), real(a, b)))
    output = cluster_photo(file, tmp_path / "out.png")
    assert moved[0][0].parent == output.parent and moved[0][1] == output


def test_impossible_views_are_refused():
    for wrong, words in (
        ({"size": 0}, "size=0; choose the long side"),
        ({"style": "flat"}, "style='flat'; choose one of"),
        ({"partition": "windw"}, "partition='windw'; choose one of"),
        ({"num_clusters": 2, "cluster_size": 2}, "give one of them"),
    ):
        with pytest.raises(ValueError, match=words):
            View(**wrong)


# -- the command -------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote_replaced_and_left_out(file, tmp_path, capsys):
    output = tmp_path / "out.png"
    assert cluster(file, "-o", output) == 0
    said = capsys.readouterr().out
    assert f"wrote {output}" in said and UNTRAINED not in said  # secvit_nano comes with weights
    assert cluster(file, "-o", output, "--stage", "2", "--head", "all", "--block", "1", "--partition", "window") == 0
    assert f"replaced {output}" in capsys.readouterr().out
    assert main(["cluster", "sec_deit_small", str(file), "-o", str(output), "--size", "32"]) == 0
    assert UNTRAINED in capsys.readouterr().out
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    assert cluster(file.parent, tmp_path / "none.jpg", "-o", tmp_path / "new") == 2
    said = capsys.readouterr()
    assert "photo_clusters.png" in said.out
    assert "left out" in said.err and "broken.jpg" in said.err and "none.jpg" in said.err
    assert cluster(tmp_path / "none.jpg", "-o", output) == 2
    assert "none.jpg" in capsys.readouterr().err
    assert cluster(file, "-o", output, "--stage", "0") == 2
    assert "count from 1" in capsys.readouterr().err


def test_the_command_prints_purity_where_there_are_masks(small, file, tmp_path, capsys):
    mask = Image.new("L", (56, 40))
    mask.paste(1, (0, 0, 56, 20))
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "photo.png")
    words = [file, "-o", tmp_path / "out.png", "--metrics", "--num_clusters", "4", "--stage", "1"]
    assert cluster(*words) == 0
    said = capsys.readouterr().out
    assert "| compactness | noise | flip | bfloat16 |" in said and "| purity" not in said
    assert cluster(*words, "--masks", tmp_path / "masks") == 0
    said = capsys.readouterr().out
    assert "| purity | floor | compactness |" in said and "| 1 | 1 | 2 | kmeans | 4 |" in said
    assert cluster(*words, "--masks", tmp_path) == 2
    assert "no mask for photo.png" in capsys.readouterr().err


def test_a_page_holds_all_photos(small, file, tmp_path, capsys):
    photo(30, 80).save(tmp_path / "photos" / "tall.png")
    assert cluster(file.parent, "--page", "-o", tmp_path / "page.jpg") == 0
    with Image.open(tmp_path / "page.jpg") as page:
        assert page.height > 2 * 60
    assert cluster(file.parent, "--page", "--gif", "-o", tmp_path / "page.jpg") == 2
    assert "leave out --gif" in capsys.readouterr().err
    assert cluster(file.parent, "--page", "--style", "side_by_side", "-o", tmp_path / "page.jpg") == 2
    assert "choose style blended or outlined" in capsys.readouterr().err


def test_a_page_without_a_name_replaces_nothing(small, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [cluster_page([file]).written[0].name for _ in range(2)] == ["page_clusters.png", "page_clusters_2.png"]
