"""COCO's figures: those of pycocotools, and 1 for the truth itself."""

import contextlib
import io

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle

from secvit.detection.data import encode, load
from secvit.detection.evaluate import FIGURES, average_precision, ground_truth
from secvit.detection.prediction import as_results
from tests.detection.make import coco_folder, edit


def truth_as_results(coco):
    return [
        {
            "image_id": entry["id"], "category_id": o["category_id"], "bbox": o["bbox"], "score": 1.0,
            "segmentation": encode(o["segmentation"], entry["height"], entry["width"]),
        }
        for entry in coco.images for o in coco.objects[entry["id"]] if not o.get("iscrowd")
    ]  # fmt: skip


def perturbed(results, seed=0):
    random = np.random.default_rng(seed)
    found = []
    for one in results:
        for _ in range(int(random.integers(0, 3))):
            box = (np.array(one["bbox"]) * random.uniform(0.8, 1.2, 4)).tolist()
            moved = np.roll(rle.decode(one["segmentation"]), random.integers(-6, 7, 2), axis=(0, 1))
            mask = rle.encode(np.asfortranarray(moved))
            found.append({**one, "bbox": box, "segmentation": mask, "score": float(random.random())})
    return found


@pytest.mark.parametrize("name", ["coco286", "pets599", "nuclei471"])
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_the_truth_has_an_ap_of_one(name, kind, shared):
    coco = load(shared / "data" / name, "val")
    figures = average_precision(coco, truth_as_results(coco), kind, max_dets=300)
    assert figures["AP"] == pytest.approx(1.0, abs=1e-6) and figures["AP50"] == pytest.approx(1.0, abs=1e-6)
    assert all(value in (-1, pytest.approx(1.0)) for value in figures["per_class"].values())


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_all_twelve_figures_are_those_of_pycocotools(kind, shared):
    coco_module = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    coco = load(shared / "data" / "coco286", "val")
    results = perturbed(truth_as_results(coco))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_module.COCO()
        truth.dataset = ground_truth(coco)
        truth.createIndex()
        shown = [{k: v for k, v in one.items() if kind == "mask" or k != "segmentation"} for one in results]
        oracle = evaluation.COCOeval(truth, truth.loadRes(shown), {"box": "bbox", "mask": "segm"}[kind])
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    found = average_precision(coco, results, kind)
    np.testing.assert_allclose([found[name] for name in FIGURES], oracle.stats, atol=1e-9)


def test_no_detection_is_an_ap_of_zero(tmp_path):
    coco = load(coco_folder(tmp_path), "val")
    figures = average_precision(coco, [])
    assert figures["AP"] == figures["AR100"] == figures["AP_small"] == 0.0 and figures["AP_large"] == -1
    assert figures["per_class"] == {"square": 0, "triangle": 0}


@pytest.mark.parametrize("detections", [0, 1])
def test_without_an_object_every_figure_is_minus_one_and_it_is_said(tmp_path, detections, caplog):
    edit(coco_folder(tmp_path), "val", lambda c: c.update(annotations=[]))
    coco = load(tmp_path, "val")
    found = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5}] * detections
    figures = average_precision(coco, found)
    assert {figures[name] for name in FIGURES} == {-1} and set(figures["per_class"].values()) == {-1}
    assert "val: no object to be found, so every figure of its score is -1" in caplog.text


def test_a_detectors_output_becomes_cocos_entries():
    out = {
        "boxes": torch.tensor([[1.0, 2, 5, 9]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5]),
        "masks": torch.ones(1, 10, 12, dtype=torch.bool),
    }  # fmt: skip
    (entry,) = as_results(out, 77, (3, 7))
    assert (entry["image_id"], entry["category_id"], entry["bbox"], entry["score"]) == (77, 7, [1, 2, 4, 7], 0.5)
    assert entry["segmentation"]["size"] == [10, 12]
