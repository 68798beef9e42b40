"""A run keeps the numbers and names of its masks: what it writes, scores, resumes and starts from."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from secvit import runs
from secvit.cli import main
from secvit.segmentation import evaluate_checkpoint, recipes, train
from secvit.segmentation.pictures import numbered
from secvit.segmentation.prediction import load_trained
from secvit.segmentation.training import initial_model
from tests.segmentation import exports
from tests.segmentation.make import mask_folder, save, scene
from tests.segmentation.test_classes import folder
from tests.train.launch import launch


def small(**changes):
    recipe = recipes.tiny(recipes.folder())
    return replace(recipe, loop=replace(recipe.loop, device="cpu", batch_size=3, **{"steps": 1, **changes}))


def always(run, label):
    """Make the network of a run give every pixel one label."""
    state = load_file(run / "model.safetensors")
    state["head.classify.1.weight"].zero_()
    state["head.classify.1.bias"].fill_(-50.0)[label] = 50.0
    save_file(state, run / "model.safetensors")


NUMBERS = {
    "0 ignored": ((0, 1, 2), {"classes": ["a", "b"], "ignore_index": 0}, [1, 2]),
    "binary": ((0, 255), {"classes": ["a", "b"]}, [0, 255]),
    "from 1, without names": ((1, 2, 255), None, [1, 2]),
    "named values": ((7, 90), {"classes": {"7": "a", "90": "b"}}, [7, 90]),
    "beyond 255": ((0, 300, 65535), {"classes": {"300": "a", "65535": "b"}, "ignore_index": 0}, [300, 65535]),
}


@pytest.mark.parametrize(("values", "names", "numbers"), NUMBERS.values(), ids=NUMBERS)
def test_segment_writes_the_numbers_that_came_in(tmp_path, values, names, numbers):
    kind = np.uint16 if max(values) > 255 else np.uint8
    data = folder(tmp_path / "data", *values, names=names, dtype=kind)
    train(small(), data, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert list(config["values"]) == numbers and load_trained(tmp_path / "run", "cpu").values == tuple(numbers)
    for label, number in enumerate(numbers):
        always(tmp_path / "run", label)
        runs.open(tmp_path / "run", device="cpu").photos([data / "images/val/0.png"], tmp_path / "out")
        with Image.open(tmp_path / "out" / "0.png") as mask:
            assert np.unique(np.asarray(mask)).tolist() == [number]
            said = json.loads(mask.text["classes"])
        assert said == dict(zip(map(str, numbers), config["classes"], strict=True))


def test_what_segment_writes_can_be_trained_on(tmp_path):
    data = folder(tmp_path / "data", 0, 1, 2, names={"classes": ["a", "b"], "ignore_index": 0})
    train(small(), data, tmp_path / "run")
    always(tmp_path / "run", 1)
    runs.open(tmp_path / "run", device="cpu").photos([data / "images/val"], tmp_path / "data" / "masks" / "val")
    for path in (tmp_path / "data" / "masks" / "val").glob("*_overlay.jpg"):
        path.unlink()
    scores = evaluate_checkpoint(tmp_path / "run", data, device="cpu")
    assert scores["pixel_accuracy"] == 1.0 and scores["per_class"] == {"a": None, "b": 1.0}


def test_a_run_on_colours_writes_these_colours(tmp_path):
    data = exports.cvat(tmp_path / "data")
    train(small(), data, tmp_path / "run")
    always(tmp_path / "run", 2)
    runs.open(tmp_path / "run", device="cpu").photos([data / "JPEGImages" / "Train 0.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "Train 0.png") as mask:
        assert np.unique(np.asarray(mask)).tolist() == [2]
        assert np.unique(np.asarray(mask.convert("RGB")).reshape(-1, 3), axis=0).tolist() == [list(exports.COLOURS[2])]


def test_a_run_of_an_older_version_counts_from_0(tmp_path):
    data = folder(tmp_path / "data", 0, 1, 2, names={"classes": ["a", "b"], "ignore_index": 0})
    train(small(), data, tmp_path / "run")
    expected = evaluate_checkpoint(tmp_path / "run", data, device="cpu")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del config["values"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert evaluate_checkpoint(tmp_path / "run", data, device="cpu") == expected
    assert load_trained(tmp_path / "run", "cpu").values == (0, 1)


WRONG_CONFIG = {
    "classes": ({"classes": 3}, "classes is 3, expected a list"),
    "names": ({"classes": [["a"], "b"]}, "classes is .*, expected a list of names"),
    "values": ({"values": ["x", 1]}, "values is .*, expected a number"),
    "too few values": ({"values": [1]}, "classes, palette and values that do not fit each other"),
    "values out of range": ({"values": [0, 70000]}, "do not fit each other"),
    "palette": ({"palette": "red"}, "palette is .red., expected a list"),
    "colours": ({"palette": [[0, 0, 0], [0, 0, 999]]}, "palette with colours beyond 0 to 255"),
    "look": ({"look": {"short_side": "x", "scales": [1.0]}}, "does not fit this version"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_CONFIG.values(), ids=WRONG_CONFIG)
def test_a_config_of_other_types_is_named(tmp_path, change, message):
    config = {"model": {"head": "semantic_fpn", "backbone": "secvit_nano", "backbone_args": recipes.SMALL}}
    config |= {"classes": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "look": {"short_side": 64, "scales": [1.0]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, **change}))
    with pytest.raises(ValueError, match=message):
        load_trained(tmp_path)


def test_numbers_become_indices_with_the_palette():
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    mask = numbered(labels, (3, 255), [(1, 2, 3), (4, 5, 6)])
    assert mask.mode == "P" and np.asarray(mask).tolist() == [[3, 255], [255, 3]]
    assert np.asarray(mask.convert("RGB"))[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert np.asarray(numbered(labels, (3, 256), [(1, 2, 3), (4, 5, 6)])).tolist() == [[3, 256], [256, 3]]


# -- classes by name -----------------------------------------------------------------------------


def renamed(root, names):
    (root / "classes.json").write_text(json.dumps({"classes": names}))
    return root


def test_a_run_scores_data_whose_classes_stand_in_another_order(tmp_path):
    data = mask_folder(tmp_path / "data")
    train(small(steps=4), data, tmp_path / "run")
    expected = evaluate_checkpoint(tmp_path / "run", data, device="cpu")
    turn = np.array([2, 0, 1, *[255] * 253], np.uint8)  # noise 2, square 0, stripe 1
    for path in (data / "train_label", data / "val_label"):
        for mask in path.iterdir():
            save(mask, turn[np.asarray(Image.open(mask))])
    renamed(data, ["square", "stripe", "noise"])
    assert evaluate_checkpoint(tmp_path / "run", data, device="cpu") == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["noise", "square", "circle"], "only in the data .*: 'circle'; only in the run .*: 'stripe'"),
        (["noise", "square", "stripe", "extra"], "other classes .4 and 3.; only in the data .*: 'extra'"),
    ],
)
def test_other_classes_are_refused_at_evaluation_and_resume(tmp_path, names, message):
    data = mask_folder(tmp_path / "data")
    train(small(), data, tmp_path / "run")
    renamed(data, names)
    for mask in (data / "train_label").iterdir():
        pixels = np.asarray(Image.open(mask)).copy()
        pixels[5, 5] = 3 if len(names) == 4 else 0
        save(mask, pixels)
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoint(tmp_path / "run", data, device="cpu")
    with pytest.raises(ValueError, match=f"{message}.*compared by name"):
        train(small(steps=2), data, tmp_path / "run")


def test_a_resumed_run_keeps_the_order_of_its_classes(tmp_path):
    data = mask_folder(tmp_path / "data")
    whole = train(small(steps=4), data, tmp_path / "whole")
    train(small(steps=4, time_limit_minutes=1e-9), data, tmp_path / "broken")
    (data / "classes.json").write_text(json.dumps({"classes": {"2": "stripe", "1": "square", "0": "noise"}}))
    train(small(steps=4), data, tmp_path / "broken")
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a) and set(whole["per_class"]) == {"noise", "square", "stripe"}


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_a_start_takes_predictors_by_the_names_of_classes(tmp_path, head):
    args = {"channels": 8, **recipes.NARROW[head]}
    recipe = replace(small(), model=replace(small().model, head=head, args=args))
    train(recipe, mask_folder(tmp_path / "data"), tmp_path / "run")
    trained = load_file(tmp_path / "run" / "model.safetensors")
    from_run = replace(recipe, model=replace(recipe.model, init=str(tmp_path / "run")))
    names = ("stripe", "cloud", "noise")
    found, new = initial_model(from_run, 3, names).state_dict(), initial_model(recipe, 3).state_dict()
    keys = ["head.classify.1.weight", "head.classify.1.bias"]
    keys += ["auxiliary.1.1.weight", "auxiliary.1.1.bias"] if head == "upernet" else []
    for key in keys:
        assert torch.equal(found[key][[0, 2]], trained[key][[2, 0]]) and torch.equal(found[key][1], new[key][1])
    same = initial_model(from_run, 3, ("noise", "square", "stripe")).state_dict()
    assert all(torch.equal(same[key], trained[key]) for key in trained)


# -- photos --------------------------------------------------------------------------------------


def test_a_broken_photo_does_not_stop_the_rest(tmp_path, capsys):
    train(small(), mask_folder(tmp_path / "data"), tmp_path / "run")
    photos = tmp_path / "photos"
    for name in ("a.png", "c.png"):
        save(photos / name, scene(0)[0])
    (photos / "b.png").write_bytes(b"no image")
    (photos / "d.png").write_bytes((photos / "a.png").read_bytes()[:300])
    words = ["segment", str(photos), "--weights", str(tmp_path / "run"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 2
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"a.png", "a_overlay.jpg", "c.png", "c_overlay.jpg"}
    said = capsys.readouterr()
    assert said.out.count("wrote") == 2 and "Traceback" not in said.err
    assert re.search(r"(?s)left out .*b.png: not an image.*left out .*d.png: broken", said.err)


# -- many processes ------------------------------------------------------------------------------


@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
def test_each_of_two_processes_reads_a_share_of_the_masks_and_knows_all(tmp_path):
    data = mask_folder(tmp_path / "data", images=5, classes=())
    save(data / "train_label" / "3.png", np.full((64, 80), 3, np.uint8))
    code = f"""
import json, torch
from secvit.segmentation import data, masks
torch.distributed.init_process_group("gloo")
read = []
original = data.read_indexed
data.read_indexed = lambda path, colours=None: read.append(path.name) or original(path, colours)
found = data.load({str(data)!r}, "train")
mine = {{"read": sorted(read), "classes": found.classes}}
every = [None, None]
torch.distributed.all_gather_object(every, mine)
if torch.distributed.get_rank() == 0:
    print(json.dumps(every))
"""
    done = launch(tmp_path, code)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(done.stdout)
    assert first["read"] + second["read"] == ["0.png", "2.png", "4.png", "1.png", "3.png"]
    assert first["classes"] == second["classes"] == ["0", "1", "2", "3"]
