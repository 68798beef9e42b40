"""Small folders of conversations about noise."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def entry(name, image=None, turns=(("<image>\nwhat is it?", "a cat"),)):
    said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn)]
    return {"id": name, **({"image": image} if image else {}), "conversations": said}


def folder(path: Path, count=10, texts=3, val=2, follow_ups=True) -> Path:
    """`count` samples with an image each, `texts` without; the first two of val.json are the last two of them."""
    (path / "images").mkdir(parents=True)
    noise, words = np.random.default_rng(0), ["a cat", "two dogs on a mat", "nothing", "the red one there", "no"]
    entries = []
    for i in range(count):
        size = (40 + 3 * i, 30 + 5 * (i % 4))
        Image.fromarray(noise.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path / "images" / f"{i}.png")
        turns = [("<image>\nwhat is it?" if i % 2 else "what is it?\n<image>", words[i % 5])]
        entries.append(entry(f"p{i}", f"{i}.png", turns + [("and now?", words[(i + 1) % 5])] * (i % 3 * follow_ups)))
    entries += [entry(f"t{i}", turns=[("how are you today, and why?", words[i % 5])]) for i in range(texts)]
    (path / "train.json").write_text(json.dumps(entries))
    if val:
        (path / "val.json").write_text(json.dumps(entries[-val - texts : -texts or None]))
    return path
