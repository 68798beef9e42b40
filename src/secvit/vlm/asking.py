"""Questions about photos, to a trained LLaVA."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from secvit.fields import read_yaml
from secvit.hub import hub
from secvit.images import read_image
from secvit.models.saved import device_of, saved_config
from secvit.vlm.adapt import load_connector
from secvit.vlm.config import Model
from secvit.vlm.initial import initial_llava

Photo = Image.Image | str | os.PathLike[str]


def ask(
    llava: Any,
    processor: ProcessorMixin,
    pictures: Photo | Sequence[Photo],
    question: str,
    max_new_tokens: int = 256,
    **generate: Any,
) -> str:
    """The answer to a question about one or more photos (or none), greedy unless `generate` says otherwise.

    llava, processor: of `load_trained`, `use_connector`, or any LLaVA with a chat template.
    pictures: photos, opened in any mode, or files of any format.
    """
    images = [pictures] if isinstance(pictures, Image.Image | str | os.PathLike) else pictures
    opened = [read_image(photo) for photo in images]
    content: list[Any] = [*({"type": "image", "image": image} for image in opened), {"type": "text", "text": question}]
    write: Any = processor.apply_chat_template  # gives a string or tensors, by its arguments
    inputs = write(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(llava.device)
    with torch.inference_mode():
        ids = llava.generate(**inputs, **{"do_sample": False, "max_new_tokens": max_new_tokens, **generate})
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def load_trained(
    weights: str | os.PathLike[str], device: torch.device | str | None = None, dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """What a run of `secvit train vlm...` left, in evaluation mode -> (model, processor).

    weights: the folder of a run, or any LLaVA that transformers loads.  Of a run of stage 1, which left a connector
        alone, the rest comes from where the run had it.
    device: the GPU if there is one.  dtype: as for from_pretrained.
    """
    path = Path(weights)
    if not path.exists() and not re.fullmatch(r"[\w.-]*\w/[\w.-]+", str(weights)):  # which may be a name of the hub
        raise ValueError(f"{path}: no such folder; check the path")
    stage_1 = (path / "connector.json").is_file()
    if path.is_dir() and not stage_1 and not (path / "config.json").is_file():
        raise ValueError(f"{path}: no finished run of vision-language training; its folder gets config.json at the end")
    if (task := saved_config(path).get("task", "vlm")) != "vlm":
        raise ValueError(f"{path} is a run of {task}, not a language model; secvit predict takes any")
    llava: Any
    if stage_1:
        llava, processor = with_connector(path)
    else:
        try:
            with hub(str(path)):
                processor = AutoProcessor.from_pretrained(path)
                llava = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
        except OSError as error:
            raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
    return llava.to(device_of(device)).eval(), processor


def with_connector(run: Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The LLaVA that a run of stage 1 began with, and the connector that it trained."""
    try:
        config = read_yaml(run / "config.yaml")
        chosen, seed = (
            Model(**{**config["model"], "trained": tuple(config["model"]["trained"])}),
            config["loop"]["seed"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run}: its config.yaml is not that of this version's training ({error})") from None
    processor = AutoProcessor.from_pretrained(run)
    llava, _ = initial_llava(replace(chosen, init=None), seed=seed, tokenizer=processor.tokenizer)
    load_connector(llava, processor, run)
    return llava, processor
