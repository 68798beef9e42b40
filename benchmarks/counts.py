"""Parameters and work of a recipe's network, as the paper's tables count them; nothing is computed."""

import torch

from secvit import recipes
from secvit.detection.saved import create as create_detector
from secvit.measure import count_macs
from secvit.measure.detectors import detector_macs
from secvit.models.saved import create
from secvit.segmentation.prediction import create as create_segmenter

CLASSES = {"classification": 1000, "detection": 80, "segmentation": 150}


def of_recipe(name: str) -> dict[str, float]:
    """parameters in millions, work in 1e9 multiply-accumulates, with attention in classification alone."""
    kind, model = name.partition(".")[0], recipes.find(name)().model
    with torch.device("meta"):
        if kind == "classification":
            network = create(model.name, CLASSES[kind], dict(model.args))
            work = count_macs(network).total
        elif kind == "detection":
            network = create_detector(model, CLASSES[kind])
            work = detector_macs(network).without_attention
        else:
            network = create_segmenter(model, CLASSES[kind], False)
            work = count_macs(network, (3, 512, 2048)).without_attention
    # an auxiliary head is there in training alone, and counts, as in the paper
    return {"parameters": round(sum(p.numel() for p in network.parameters()) / 1e6, 3), "work": round(work / 1e9, 3)}
