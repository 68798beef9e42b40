"""Each detector learns eight images of COCO by heart: its losses, targets, decoding and scoring fit together."""

import json
import shutil
from dataclasses import replace

import pytest

from secvit.detection import recipes, train
from secvit.train.config import Schedule

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # a quarter of an hour each on one core
STEPS = {"mask_rcnn": 200, "cascade_mask_rcnn": 200, "retinanet": 300}


@pytest.fixture(scope="module")
def eight(tmp_path_factory, shared):
    """Eight images with up to four objects of at least 60 px, no crowds, as train and as val."""
    source, target = shared / "data" / "coco286", tmp_path_factory.mktemp("eight")
    known = json.loads((source / "annotations" / "instances_train.json").read_text())
    objects = {
        entry["id"]: [a for a in known["annotations"] if a["image_id"] == entry["id"]] for entry in known["images"]
    }
    chosen = [
        entry
        for entry in known["images"]
        if 1 <= len(objects[entry["id"]]) <= 4
        and all(min(a["bbox"][2:]) >= 60 and not a["iscrowd"] for a in objects[entry["id"]])
    ][:8]
    assert len(chosen) == 8
    content = {
        "images": chosen,
        "annotations": [a for entry in chosen for a in objects[entry["id"]]],
        "categories": known["categories"],
    }
    (target / "annotations").mkdir()
    for split in ("train", "val"):
        (target / split).mkdir()
        for entry in chosen:
            shutil.copy(source / "train" / entry["file_name"], target / split)
        (target / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("detector", STEPS)
def test_a_detector_learns_eight_images_by_heart(detector, eight, tmp_path):
    recipe, steps = recipes.folder(), STEPS[detector]
    model = replace(recipe.model, detector=detector, min_size=(224,), max_size=320)
    if detector == "retinanet":
        model = replace(model, args={})
    loop = replace(
        recipe.loop, epochs=None, steps=steps, log_every=20, evaluate_every=steps, save_every=steps, device="cpu"
    )
    recipe = replace(recipe, model=model, loop=loop, flip=0.0, schedule=Schedule(warmup_steps=20))
    result = train(recipe, eight, tmp_path / "run")
    assert result["box_AP50"] > 0.9
    assert detector == "retinanet" or result["mask_AP50"] > 0.8
