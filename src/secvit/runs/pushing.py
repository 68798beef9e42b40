"""A finished run on the Hugging Face hub, or in a folder as it would be uploaded."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from secvit.fields import read_json, read_yaml
from secvit.files import write_atomically
from secvit.train.checkpoint import latest, number, to_yaml
from secvit.train.folder import result_of

HUB = re.compile(r"[\w.-]*\w/[\w.-]+")  # a model of the Hugging Face hub
SHOWN = (".safetensors", ".json", ".yaml", ".md", ".csv", ".png", ".txt", ".jinja", ".model")  # what is pushed
PLACES = ("images", "val", "cache")  # of conversations, which a config.yaml says


def push(run: str, name: str, *, private: bool = False, to: str | None = None) -> str:
    """Upload a finished run to the Hugging Face hub, as timm and transformers load it; returns where it is.

    Of paths to data and images only the last part is uploaded.

    run: the folder of a run.
    name: USER/NAME of the repository, which is made if there is none.
    private: make a private one.
    to: write what would be uploaded into this folder, and upload nothing.
    """
    path = Path(run)
    _check(path, name)
    if to is not None:
        folder = Path(to)
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder}: not empty; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        _copy(path, folder)
        return str(folder)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="secvit-push-") as staged:
            _copy(path, Path(staged))
            return str(api.upload_folder(repo_id=name, folder_path=staged))
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name}: {reason}; log in with `hf auth login`, or try --to FOLDER first") from None


def _check(path: Path, name: str) -> None:
    if not HUB.fullmatch(name):
        raise ValueError(f"{name!r} is no repository of the hub; give USER/NAME")
    if not (path / "model.safetensors").is_file():
        raise ValueError(f"{path}: no finished run (no model.safetensors); give the folder of `secvit train`")
    newest, done = latest(path), result_of(path).get("steps", math.inf)
    if newest is not None and (number(newest) or 0) > done:
        raise ValueError(
            f"{path}: its weights are of step {done}, its newest checkpoint is {newest.name}; run the same training "
            "to its end first"
        )


def _copy(run: Path, folder: Path) -> None:
    """The files of a run that others need; no exported ones, nor the JSON beside them."""
    files = [file for file in sorted(run.iterdir()) if file.is_file() and file.name[0] != "." and file.suffix in SHOWN]
    for file in files:
        if not (file.suffix == ".json" and (run / file.stem).is_file()):
            shutil.copy(file, folder / file.name)
    config_file, result_file = folder / "config.yaml", folder / "result.json"
    if config_file.is_file() and isinstance(config := read_yaml(config_file), dict):
        if isinstance(samples := config.get("samples"), dict):
            config["samples"] = {key: _last(value) if key in PLACES else value for key, value in samples.items()}
        write_atomically(config_file, to_yaml(_unplaced(config)))
    if result_file.is_file() and isinstance(result := read_json(result_file), dict):
        write_atomically(result_file, json.dumps(_unplaced(result), indent=2).encode())


def _unplaced(entries: dict[str, Any]) -> dict[str, Any]:
    return {**entries, "data": _last(entries["data"])} if "data" in entries else entries


def _last(place: Any) -> Any:
    return Path(place).name if isinstance(place, str) else place
