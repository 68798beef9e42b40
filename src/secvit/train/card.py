"""The README.md of a run: what it is, what it reached, how it is opened; a model card of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secvit.files import write_atomically

MARK = "<!-- written by secvit at the end of the run -->"
KINDS = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "simmim": "image-feature-extraction",
    "vlm": "image-text-to-text",
}
TIMM = """
```python
import secvit, timm

model = timm.create_model("local-dir:RUN", pretrained=True).eval()  # or "hf-hub:USER/NAME"
```
`transformers.pipeline("image-classification", "RUN")` loads it, too, after `import secvit`.
"""
CLASSES = 40  # that a card names


def write_card(output: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write README.md, unless there is one of someone else's."""
    path = output / "README.md"
    if not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace"):
        write_atomically(path, card(output.resolve().name, config, result).encode())


def card(name: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    task, classes = config.get("task", ""), list(config.get("classes") or ())
    named = ", ".join(map(str, classes[:CLASSES])) + (f" and {len(classes) - CLASSES} more" * (len(classes) > CLASSES))
    network = " on ".join(str(result[key]) for key in ("model", "backbone") if result.get(key))
    versions = ", ".join(
        f"{key} {value}" for key, value in result["versions"].items() if key in ("secvit", "torch", "timm")
    )
    rows = {
        "task": task,
        "recipe": config.get("recipe"),
        "network": network,
        "parameters": f"{result['parameters']:,}" if "parameters" in result else None,
        f"{len(classes)} classes": named if classes else None,
        "data": Path(str(config.get("data", ""))).name,
        "steps": f"{result['steps']:,} in {result['seconds'] / 60:.0f} minutes on {result['hardware']}",
        "made with": f"{versions}, commit {result['commit']}, {result['date'][:10]}",
    }
    table = "\n".join(f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in rows.items() if value)
    library = "timm" if task == "classification" else "transformers" if task == "vlm" else "secvit"
    head = f"---\nlibrary_name: {library}\n"
    head += f"pipeline_tag: {KINDS[task]}\n" if task in KINDS else ""
    return f"""{head}tags: [secvit]
---
{MARK}
# {name}

{result.get("summary") or "Not scored."}

| | |
|---|---|
{table}

Everything else is in config.yaml (the recipe) and result.json (figures, versions, hardware).

## Use
```python
from secvit import runs

trained = runs.open("RUN")  # this folder
trained.predict("photo.jpg")
```
From a terminal: `secvit predict RUN photo.jpg`, `secvit evaluate RUN --data DIR`, `secvit cluster RUN photo.jpg`.
{TIMM if task == "classification" else ""}"""
