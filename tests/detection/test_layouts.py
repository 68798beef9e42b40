"""Data sets as annotation tools export them: each is found, read to the same boxes, trained on and scored."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle
from PIL import Image

from secvit.detection import evaluate_checkpoint, recipes, train
from secvit.detection.data import find, load, splits
from secvit.detection.evaluate import average_precision
from secvit.detection.training import check_overlap
from secvit.detection.view import TrainView
from tests.conftest import slow_but

WIDTH, HEIGHT = 80, 64
NAMES = ("square", "triangle")


def things(seed):
    """Of one image: label, box, polygon."""
    random = np.random.default_rng(seed)
    for label in (0, 1):
        x, y = (int(v) for v in random.integers(2, 40, 2))
        corners = [x, y, x + 20, y, x + 20, y + 20] + ([x, y + 20] if label == 0 else [])
        yield label, [x, y, 20, 20], corners


def write_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for label, (x, y, w, h), _ in things(seed):
        pixels[y : y + h, x : x + w, label] = 255
    Image.fromarray(pixels).save(path)


def coco(file, seeds, name="{}.png", first=1, categories=None, **own):
    """A COCO file of some images, by seed.  name: what it calls them; first: where its ids begin."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i, seed in enumerate(seeds):
        images.append({"id": i + first, "file_name": name.format(seed), "width": WIDTH, "height": HEIGHT})
        for label, box, corners in things(seed):
            one = {"id": len(annotations) + first, "image_id": i + first, "category_id": label + first, "bbox": box,
                   "area": 400, "iscrowd": 0, "segmentation": [corners]}  # fmt: skip
            annotations.append({**one, **{key: make(one) for key, make in own.items()}})
    categories = categories or [{"id": i + first, "name": n, "supercategory": ""} for i, n in enumerate(NAMES)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def write_images(folder, seeds):
    for seed in seeds:
        write_image(folder / f"{seed}.png", seed)


def brush(one):
    polygon = rle.frPyObjects(one["segmentation"], HEIGHT, WIDTH)
    pixels = rle.decode(polygon)[:, :, 0].T.reshape(-1)
    edges = np.flatnonzero(np.diff(pixels, prepend=0, append=0))
    counts = np.diff([0, *edges, len(pixels)] if pixels[-1] == 0 else [0, *edges])
    return {"size": [HEIGHT, WIDTH], "counts": counts.tolist()}


TRAIN, VAL, ALL = range(6), range(6, 8), range(8)


def cvat_task(root):
    write_images(root / "images", ALL)
    coco(root / "annotations/instances_default.json", ALL)


def cvat_project(root):
    for name, seeds in (("Train", TRAIN), ("Validation", VAL)):
        write_images(root / "images" / name, seeds)
        coco(root / f"annotations/instances_{name}.json", seeds)


def cvat_subset_names(root):
    for name, seeds in (("train", TRAIN), ("val", VAL)):
        write_images(root / "images" / name, seeds)
        coco(root / f"annotations/instances_{name}.json", seeds, f"images\\{name}\\{{}}.png")


def cvat_brush(root):
    write_images(root / "images", ALL)
    coco(root / "annotations/instances_default.json", ALL, iscrowd=lambda one: 1, segmentation=brush)


def percent_names(root):
    for name, seeds in (("train", TRAIN), ("val", VAL)):
        write_images(root / "images", [])
        for seed in seeds:
            write_image(root / name / f"a photo {seed}.png", seed)
        coco(root / f"annotations/instances_{name}.json", seeds, "a%20photo%20{}.png")


def label_studio(root):
    write_images(root / "images", ALL)
    coco(root / "result.json", ALL, "../../label-studio/data/images/{}.png", 0)


def label_studio_uploads(root):
    write_images(root / "images", ALL)
    coco(root / "result.json", ALL, "/data/upload/1/{}.png", 0)


def roboflow(root, **own):
    classes = [{"id": 0, "name": "things", "supercategory": "none"}]
    classes += [{"id": i, "name": name, "supercategory": "things"} for i, name in enumerate(NAMES, 1)]
    for name, seeds in (("train", TRAIN), ("valid", VAL)):
        write_images(root / name, seeds)
        coco(root / name / "_annotations.coco.json", seeds, categories=classes, **own)


def roboflow_boxes(root):
    roboflow(root, segmentation=lambda one: [])


def yolo_labels(folder, seeds, polygons=False):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        lines = []
        for label, (x, y, w, h), corners in things(seed):
            rest = (np.array(corners).reshape(-1, 2) / [WIDTH, HEIGHT]).reshape(-1) if polygons else [
                (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]  # fmt: skip
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in rest)]))
        (folder / f"{seed}.txt").write_text("\n".join(lines) + "\n")


def yolo(root):
    for name, seeds in (("train", TRAIN), ("val", VAL)):
        write_images(root / "images" / name, seeds)
        yolo_labels(root / "labels" / name, seeds)
    (root / "data.yaml").write_text(
        f"path: /somewhere/else\ntrain: images/train\nval: images/val\nnames:\n  0: {NAMES[0]}\n  1: {NAMES[1]}\n"
    )


def yolo_polygons(root):
    yolo(root)
    for name, seeds in (("train", TRAIN), ("val", VAL)):
        yolo_labels(root / "labels" / name, seeds, True)


def yolo_of_roboflow(root):
    for name, seeds in (("train", TRAIN), ("valid", VAL)):
        write_images(root / name / "images", seeds)
        yolo_labels(root / name / "labels", seeds)
    (root / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\nnc: 2\nnames: {list(NAMES)}\n")


def yolo_undivided(root):
    write_images(root / "images", ALL)
    yolo_labels(root / "labels", ALL)
    (root / "classes.txt").write_text("\n".join(NAMES))


def voc_files(folder, seeds):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        objects = "".join(
            f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, (x, y, w, h), _ in things(seed)
        )
        (folder / f"{seed}.xml").write_text(f"<annotation><filename>{seed}.png</filename>{objects}</annotation>")


def voc(root):
    write_images(root / "JPEGImages", ALL)
    voc_files(root / "Annotations", ALL)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, seeds in (("train", TRAIN), ("val", VAL), ("square_train", VAL)):
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{seed}\n" for seed in seeds))


def voc_undivided(root):
    write_images(root / "JPEGImages", ALL)
    voc_files(root / "Annotations", ALL)


def voc_of_roboflow(root):
    for name, seeds in (("train", TRAIN), ("valid", VAL)):
        write_images(root / name, seeds)
        voc_files(root / name, seeds)


LAYOUTS = (
    cvat_task, cvat_project, cvat_subset_names, cvat_brush, percent_names, label_studio, label_studio_uploads, roboflow,
    roboflow_boxes, yolo, yolo_polygons, yolo_of_roboflow, yolo_undivided, voc, voc_undivided, voc_of_roboflow,
)  # fmt: skip
UNDIVIDED = {"cvat_task", "cvat_brush", "label_studio", "label_studio_uploads", "yolo_undivided", "voc_undivided"}
BOXES_ALONE = {"roboflow_boxes", "yolo", "yolo_of_roboflow", "yolo_undivided", "voc", "voc_undivided",
               "voc_of_roboflow"}  # fmt: skip


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_tools_export_is_read_to_the_boxes_that_were_drawn(tmp_path, make):
    make(tmp_path)
    read = [load(tmp_path, split) for split in ("train", "val")]
    assert splits(tmp_path) == ("train", "val") and [len(c) for c in read] == (
        [7, 1] if make.__name__ in UNDIVIDED else [6, 2]
    )
    for c in read:
        assert c.classes == NAMES and c.has_masks == (make.__name__ not in BOXES_ALONE)
        for i, entry in enumerate(c.images):
            seed = int("".join(filter(str.isdigit, c.path(i).stem)))
            known = [(label, box) for label, box, _ in things(seed)]
            for (label, box), one in zip(known, c.objects[entry["id"]], strict=True):
                assert one["category_id"] == label + 1 and not one["iscrowd"]
                assert one["bbox"] == pytest.approx(box, abs=1e-3)  # px; YOLO's shares have six decimals
            assert len(c.target(i)["labels"]) == 2 and ("masks" in c.target(i)) == c.has_masks
        found = [{**o, "score": 1.0} for some in c.objects.values() for o in some]
        assert average_precision(c, found)["AP"] == pytest.approx(1.0)
    if make.__name__ in UNDIVIDED:
        names = [{entry["file_name"] for entry in c.images} for c in read]
        assert not names[0] & names[1] and len(names[0] | names[1]) == 8


TRAINED = (cvat_task, cvat_project, cvat_brush, label_studio, roboflow_boxes, yolo, voc)


@pytest.mark.parametrize("make", slow_but((cvat_project, voc), TRAINED), ids=lambda make: make.__name__)
def test_a_tools_export_is_trained_on_and_scored(tmp_path, make):
    make(tmp_path / "data")
    recipe = recipes.tiny(recipes.folder())
    recipe = replace(recipe, loop=replace(recipe.loop, device="cpu", steps=1), background=True)
    result = train(recipe, tmp_path / "data", tmp_path / "run")
    kinds = {"box"} if make.__name__ in BOXES_ALONE else {"box", "mask"}
    scores = evaluate_checkpoint(tmp_path / "run", tmp_path / "data", device="cpu")
    assert {kind for kind in ("box", "mask") if f"{kind}_AP" in scores} == kinds
    assert scores["box_AP"] == pytest.approx(result["box_AP"], abs=1e-6)
    shutil.rmtree(tmp_path / "run")


def test_supervision_reads_the_same_boxes(tmp_path):
    supervision = pytest.importorskip("supervision")
    yolo(tmp_path / "yolo")
    oracle = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "yolo/images/train"), str(tmp_path / "yolo/labels/train"), str(tmp_path / "yolo/data.yaml")
    )
    c = load(tmp_path / "yolo", "train")
    for path, _, found in oracle:
        i = list(c.names).index(path)
        np.testing.assert_allclose(found.xyxy, c.target(i)["boxes"], atol=0.1)  # px


def test_a_lone_train_is_divided_when_asked_and_whole_else(tmp_path):
    roboflow(tmp_path)
    shutil.rmtree(tmp_path / "valid")
    assert [len(load(tmp_path, "train", divide=d)) for d in (False, True)] == [6, 5]
    assert len(load(tmp_path, "val", divide=True)) == 1
    with pytest.raises(ValueError, match="no val split; looked for .*; found train"):
        find(tmp_path, "val")


def test_the_part_that_is_held_out_depends_on_names_alone(tmp_path):
    cvat_task(tmp_path / "a")
    write_images(tmp_path / "b" / "images", ALL)
    coco(tmp_path / "b" / "result.json", reversed(ALL), first=0)
    a, b = (load(tmp_path / name, "val").images[0]["file_name"] for name in "ab")
    assert a == b


def test_of_two_files_for_one_split_none_is_chosen_by_chance(tmp_path):
    for name in ("train", "Train"):
        write_images(tmp_path / name, TRAIN)
        coco(tmp_path / f"annotations/instances_{name}.json", TRAIN)
    with pytest.raises(ValueError, match="instances_.*are both a train split"):
        find(tmp_path, "train")
    (tmp_path / "annotations/instances_Train.json").rename(tmp_path / "annotations/instances_train2014.json")
    assert find(tmp_path, "train").file.name == "instances_train.json"


def test_roboflows_heading_class_is_left_out_and_said(tmp_path, caplog):
    roboflow(tmp_path)
    c = load(tmp_path, "train")
    assert c.classes == NAMES and c.category_ids == (1, 2) and "class 'things' has no object" in caplog.text


def test_brush_masks_are_learned_as_objects_and_said(tmp_path, caplog):
    cvat_brush(tmp_path)
    assert len(TrainView(load(tmp_path, "train"), True)) == 7 and "every object is marked iscrowd" in caplog.text


YOLO_FAULTS = {
    "0 0.5 0.5 0.2": "4 numbers, expected a class and a box",
    "7 0.5 0.5 0.2 0.2": "class 7, expected one of 0, 1",
    "0 40 32 20 20": "expected shares of the image in 0..1",
    "0 0.5 x 0.2 0.2": "expected numbers",
    "0 0.5 nan 0.2 0.2": "expected numbers",
    "0.5 0.5 0.5 0.2 0.2": "expected numbers",
}


@pytest.mark.parametrize("line", YOLO_FAULTS)
def test_a_wrong_line_of_yolos_is_named(tmp_path, line):
    yolo(tmp_path)
    file = tmp_path / "labels/train/3.txt"
    file.write_text(file.read_text() + line)
    with pytest.raises(ValueError, match=f"(?s)data.yaml:.*3.txt line 3: .*{YOLO_FAULTS[line]}"):
        load(tmp_path, "train")
    assert len(load(tmp_path, "train", drop_broken=True).table) == 12


VOC_FAULTS = {
    '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>': "declares a document type or entities",
    "<annotation>": "not XML",
    "<annotation><object><name>square</name></object></annotation>": "no bndbox",
    "<annotation><object><name>square</name><bndbox><xmin>1</xmin></bndbox></object></annotation>": "four numbers",
}


@pytest.mark.parametrize("content", VOC_FAULTS)
def test_a_wrong_xml_is_named(tmp_path, content):
    voc(tmp_path)
    (tmp_path / "Annotations/3.xml").write_text(content)
    with pytest.raises(ValueError, match=f"(?s)3.xml.*{VOC_FAULTS[content]}"):
        load(tmp_path, "train")


def test_difficult_objects_of_pascal_voc_are_no_objects_to_learn(tmp_path):
    voc(tmp_path)
    file = tmp_path / "Annotations/3.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert load(tmp_path, "train").table.crowd.sum() == 1


def test_labels_without_an_image_are_counted(tmp_path, caplog):
    yolo(tmp_path / "yolo")
    yolo_labels(tmp_path / "yolo/labels/train", [7])
    voc(tmp_path / "voc")
    (tmp_path / "voc/JPEGImages/7.png").unlink()
    (tmp_path / "voc/ImageSets/Main/val.txt").write_text("6\n")
    assert [len(load(tmp_path / name, "train")) for name in ("yolo", "voc")] == [6, 6]
    assert "1 label files have no usable image" in caplog.text and "1 XML files have no image" in caplog.text


def test_named_splits_win_over_a_file_without_them(tmp_path):
    cvat_project(tmp_path)
    coco(tmp_path / "annotations/instances_default.json", ALL)
    assert [len(load(tmp_path, split)) for split in ("train", "val")] == [6, 2]


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width>80</width></size>"]
)
def test_a_voc_size_may_be_missing_or_zero(tmp_path, size):
    voc(tmp_path)
    file = tmp_path / "Annotations/3.xml"
    file.write_text(file.read_text().replace("<filename>", size + "<filename>"))
    assert len(load(tmp_path, "train")) == 6


@pytest.mark.parametrize("size", ["64x80", "800x640", "widex64"])
def test_a_voc_size_that_is_not_the_images_is_a_fault(tmp_path, size):
    voc(tmp_path)
    width, height = size.split("x")
    for seed in (1, 3):
        file = tmp_path / f"Annotations/{seed}.xml"
        own = f"<size><width>{width}</width><height>{height}</height></size><object>"
        file.write_text(file.read_text().replace("<object>", own, 1))
    with pytest.raises(ValueError, match="(?s)image 1: 1.xml: .*size.*image 3: 3.xml: .*size"):
        load(tmp_path, "train")
    assert len(load(tmp_path, "train", drop_broken=True)) == 4


@pytest.mark.parametrize("encoding", ["iso-8859-1", "gb2312", "utf-16", "utf-8"])
def test_a_voc_file_is_read_in_the_encoding_that_it_declares(tmp_path, encoding):
    voc(tmp_path)
    name = "\u732b" if encoding == "gb2312" else "caf\u00e9"
    for file in (tmp_path / "Annotations").glob("*.xml"):
        text = f'<?xml version="1.0" encoding="{encoding}"?>' + file.read_text().replace("square", name)
        file.write_bytes(text.encode(encoding))
    assert set(load(tmp_path, "train").classes) == {name, "triangle"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-7", "cp037"])
def test_entities_are_refused_in_any_encoding(tmp_path, encoding):
    voc(tmp_path)
    head, rest = (
        f'<?xml version="1.0" encoding="{encoding}"?>',
        '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
    )
    whole = (head + rest).encode(encoding) if encoding == "utf-16" else head.encode() + rest.encode(encoding)
    (tmp_path / "Annotations/3.xml").write_bytes(whole)
    with pytest.raises(ValueError, match="3.xml"):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    "names",
    [
        ("annotations/instances_Batch1.json", "annotations/instances_Batch2.json"),
        ("annotations/instances_default.json", "annotations/instances_Batch2.json"),
        ("labels.json", "result.json"),
    ],
)
def test_of_several_files_without_splits_none_is_chosen_by_chance(tmp_path, names):
    write_images(tmp_path / "images", ALL)
    for name, seeds in zip(names, (TRAIN, VAL)):
        coco(tmp_path / name, seeds)
    with pytest.raises(ValueError, match="are each a set without splits; keep one of them") as error:
        find(tmp_path, "train")
    assert all(name in str(error.value) for name in names)
    (tmp_path / names[1]).unlink()
    assert len(load(tmp_path, "train")) == 5


def test_captions_of_the_same_images_are_no_second_set(tmp_path):
    cvat_task(tmp_path)
    coco(tmp_path / "annotations/person_keypoints_default.json", ALL)
    assert find(tmp_path, "train").file.name == "instances_default.json"


def test_data_yaml_wins_over_others_with_names_and_then_what_names_splits(tmp_path):
    yolo(tmp_path)
    (tmp_path / "aa.yaml").write_text("names: {0: z, 1: y}\n")
    assert load(tmp_path, "train").classes == NAMES
    (tmp_path / "data.yaml").rename(tmp_path / "set.yaml")
    assert load(tmp_path, "train").classes == NAMES
    (tmp_path / "other.yaml").write_text((tmp_path / "set.yaml").read_text())
    assert load(tmp_path, "train").classes == NAMES
    (tmp_path / "other.yaml").write_text("train: images/train\nval: images/val\nnames: [y, z]\n")
    with pytest.raises(ValueError, match="other.yaml, set.yaml have other names .*; keep one of them"):
        load(tmp_path, "train")


def test_a_blank_line_among_classes_is_refused_and_one_after_them_is_not(tmp_path):
    yolo_undivided(tmp_path)
    (tmp_path / "classes.txt").write_text("square\ntriangle\n\n \n")
    assert load(tmp_path, "train").classes == NAMES
    (tmp_path / "classes.txt").write_text("square\n\ntriangle\n")
    with pytest.raises(ValueError, match="classes.txt: line 2 is blank"):
        load(tmp_path, "train")


@pytest.mark.parametrize("make", [yolo, voc], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["meta.json", "labels.json", "train.json", "instances_default.json"])
@pytest.mark.parametrize(
    "content", ['{"images": "none"}', '{"images": [], "annotations": []}', '["images"]'], ids=range(3)
)
def test_an_unrelated_json_beside_another_layout_is_passed_over(tmp_path, make, name, content):
    make(tmp_path)
    (tmp_path / name).write_text(content)
    assert [len(load(tmp_path, split)) for split in ("train", "val")] == [6, 2]


def test_an_unrelated_json_is_no_second_set(tmp_path):
    label_studio(tmp_path)
    (tmp_path / "meta.json").write_text('{"images": 8, "annotations": 16}')
    assert find(tmp_path, "train").file.name == "result.json"


def test_leading_folders_are_dropped_where_all_names_have_them_and_it_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    label_studio_uploads(tmp_path)
    assert len(load(tmp_path, "train")) == 7
    assert caplog.text.count("7 of 7 images were found without the leading folders") == 1


def named(root, files, names):
    for seed, file in enumerate(files):
        write_image(root / file, seed)
    coco(root / "annotations/instances_train.json", range(len(names)))
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    for one, name in zip(content["images"], names, strict=True):
        one["file_name"] = name
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("files", "names", "missing"),
    [
        (["train/cats/0.png", "train/0.png"], ["cats/0.png", "dogs/0.png"], "dogs/0.png"),
        (["images/b/0.png", "images/0.png"], ["b/0.png", "a/0.png"], "a/0.png"),
        (["train/cats/0.png", "train/1.png"], ["/x/cats/0.png", "/x/dogs/1.png"], "/x/dogs/1.png"),
    ],
)
def test_a_missing_image_is_not_found_in_another_folder(tmp_path, files, names, missing):
    named(tmp_path, files, names)
    with pytest.raises(ValueError, match=f"(?s)image 2: no file {missing} in"):
        load(tmp_path, "train")


@pytest.mark.parametrize("names", [["cats/0.png", "dogs/1.png"], ["x/0.png", "1.png"], ["s3://a/b/0.png", "/c/1.png"]])
def test_images_that_lie_in_one_folder_are_found_without_theirs(tmp_path, names):
    named(tmp_path, ["train/0.png", "train/1.png"], names)
    assert len(load(tmp_path, "train")) == 2


def test_no_categories_do_not_hide_what_is_wrong_with_the_files(tmp_path):
    voc(tmp_path)
    for file in (tmp_path / "Annotations").glob("*.xml"):
        file.write_text("<annotation>")
    with pytest.raises(ValueError, match="(?s)no categories; add some.*1.xml: not XML.*2.xml: not XML"):
        load(tmp_path, "train")


@pytest.mark.parametrize("of_all", [True, False])
def test_crowds_of_val_are_single_objects_only_if_those_of_train_are(tmp_path, of_all):
    for name, seeds in (("train", TRAIN), ("val", VAL)):
        write_images(tmp_path / name, seeds)
        crowd = name == "val" or of_all
        coco(tmp_path / f"annotations/instances_{name}.json", seeds, iscrowd=lambda one, crowd=crowd: int(crowd))
    assert load(tmp_path, "val").table.crowd.tolist() == [not of_all] * 4
    assert load(tmp_path, "train").table.crowd.sum() == 0


def yolo_lists(root):
    """Ultralytics' layout of COCO: each split is a list of files in several folders."""
    for name, seeds in (("a", range(3)), ("b", range(3, 6)), ("c", VAL)):
        write_images(root / "images" / name, seeds)
        yolo_labels(root / "labels" / name, seeds)
    for name, some in (("train", {"a": range(3), "b": range(3, 6)}), ("val", {"c": VAL})):
        lines = [f"./images/{folder}/{seed}.png" for folder, seeds in some.items() for seed in seeds]
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(f"path: ../sets/mine\ntrain: train.txt\nval: val.txt\nnames: {list(NAMES)}\n")


def yolo_folders(root):
    yolo_lists(root)
    (root / "data.yaml").write_text(f"train: [images/a, images/b]\nval: images/c\nnames: {list(NAMES)}\n")


def coco_in_folders(root):
    """Images beside and outside of the split's own folder."""
    write_images(root / "images/train", range(3))
    write_images(root / "images/more", range(3, 6))
    write_images(root / "val", VAL)
    coco(root / "annotations/instances_train.json", TRAIN, "images/more/{}.png")
    content = json.loads((root / "annotations/instances_train.json").read_text())
    for one in content["images"][:3]:
        one["file_name"] = one["file_name"].removeprefix("images/more/")
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    coco(root / "annotations/instances_val.json", VAL)


@pytest.mark.parametrize("make", [*LAYOUTS, yolo_lists, yolo_folders, coco_in_folders], ids=lambda make: make.__name__)
def test_images_are_found_from_anywhere_where_the_data_are_given_by_a_relative_path(tmp_path, monkeypatch, make):
    make(tmp_path / "sets/mine")
    monkeypatch.chdir(tmp_path)
    read = [load("sets/mine", split) for split in ("train", "val")]
    monkeypatch.chdir("/")
    assert [sum(map(len, read)), read[1].path(0).is_absolute()] == [8, True]
    assert all(c.image(i).size == (WIDTH, HEIGHT) for c in read for i in range(len(c)))
    assert check_overlap(*read) == [] and len(check_overlap(read[0], read[0])) == len(read[0])
