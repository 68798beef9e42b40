"""Checkpoints that survive a kill at any moment: write to step_N.tmp, fsync, rename to step_N.

checkpoints/step_00001234/
    model.safetensors   the model's own weights under its own names
    ema.safetensors     the averaged weights, if they are kept
    state.pt            optimizer, step, best result, facts of the data, ...: tensors and plain types only
    config.yaml         the resolved recipe
    provenance.json     versions, commit, hardware
    manifest.json       step, run, and size and SHA-256 of each file above: written last, checked first
    score.json          what the evaluation of these weights changed; written after them, missing until then
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import nn

from secvit.fields import read_json
from secvit.files import fsync, write_atomically, write_through
from secvit.weights import unpickle, weight_bytes

FOLDER = "checkpoints"
MANIFEST, SCORE = "manifest.json", "score.json"
PRODUCTS = (  # what else a run writes
    *("log.csv", "eval.csv", "result.json", "config.yaml", "config.json", "README.md"),
    *("model.safetensors", "decoder.safetensors", "connector.safetensors", "connector.json"),
    *("curves.png", "reconstructions.png"),
)


# -- writing -----------------------------------------------------------------------------------


def save_checkpoint(
    output: Path,
    step: int,
    model: nn.Module,
    ema: nn.Module | None,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Path:
    """Write step_N completely or not at all.  Left-overs of a killed save are removed first."""
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    sweep(output)
    final = folder / name(step)
    temporary = final.with_name(final.name + ".tmp")
    temporary.mkdir()
    listed: dict[str, dict[str, Any]] = {}

    def write(file: str, content: bytes) -> None:
        write_through(temporary / file, content)
        listed[file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    try:
        write("model.safetensors", weight_bytes(model.state_dict()))
        if ema is not None:
            write("ema.safetensors", weight_bytes(ema.state_dict()))
        tensors = io.BytesIO()
        torch.save(dict(state), tensors)
        write("state.pt", tensors.getvalue())
        write("config.yaml", to_yaml(config))
        write("provenance.json", json.dumps(dict(about), indent=2).encode())
        origin = {key: state.get(key) for key in ("run", "origin")}
        write_through(temporary / MANIFEST, _signed({"step": step, **origin, "files": listed}))
        fsync(temporary)
        remove(final)  # of the same run, once more: a run that fell back to an earlier one comes by again
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(folder)
    return final


def save_score(checkpoint: Path, score: Mapping[str, Any]) -> None:
    """Add what the evaluation of a checkpoint changed."""
    write_atomically(checkpoint / SCORE, _signed(score))


def prune(output: Path, keep_last: int, best_step: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one."""
    for path in complete(output)[:-keep_last]:
        if path.name != name(best_step or 0):
            remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that no half of it ever counts as one."""
    if checkpoint.exists():
        half = checkpoint.with_name(checkpoint.name + ".old.tmp")
        if half.exists():
            shutil.rmtree(half)
        os.rename(checkpoint, half)
        shutil.rmtree(half)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it counts no more but can be looked at."""
    aside = checkpoint.with_name(checkpoint.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(checkpoint, aside)
    return aside


def sweep(output: Path) -> None:
    """Remove what killed processes left half written.  Nobody else may be writing there."""
    for left_over in (output / FOLDER).glob("*.tmp"):
        shutil.rmtree(left_over)
    parts = [*(output / FOLDER).glob(f"step_*/.{SCORE}.*.part")]
    locks = output.glob("run.lock." + 32 * "[0-9a-f]")  # taken over, and not yet removed
    for part in [*parts, *locks, *(p for product in PRODUCTS for p in output.glob(f".{product}.*.part"))]:
        part.unlink(missing_ok=True)


def name(step: int) -> str:
    return f"step_{step:08d}"


def to_yaml(config: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(_plain(config), sort_keys=False).encode()


# -- reading -----------------------------------------------------------------------------------


def complete(output: Path) -> list[Path]:
    """The finished checkpoints below an output folder, oldest first."""
    return sorted(p for p in (output / FOLDER).glob("step_*") if p.name[5:].isdigit() and p.is_dir())


def latest(output: str | os.PathLike[str]) -> Path | None:
    """The newest finished checkpoint of a run, or None."""
    return next(reversed(complete(Path(output))), None)


def newest_whole(output: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint whose files are those that were written, and what is wrong with newer ones.

    ValueError if there are checkpoints, and none of them is whole.
    """
    faults: dict[Path, str] = {}
    for path in reversed(complete(output)):
        if not (problem := fault(path)):
            return path, faults
        faults[path] = problem
    if faults:
        raise ValueError(
            f"{output}: no checkpoint is whole: {'; '.join(faults.values())}. Copy them again from where they are "
            f"whole, or delete {output / FOLDER} to begin anew"
        )
    return None, {}


def fault(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files; "" if they are those that were written."""
    try:
        about = manifest(checkpoint)
        if about is None:
            return _fault_unlisted(checkpoint)
        if about.get("step") != number(checkpoint) and number(checkpoint) is not None:
            return f"{checkpoint / MANIFEST} is that of step {about.get('step')}"
        for file, written in about["files"].items():
            size, digest = _measure(checkpoint / file)
            if size != written["bytes"]:
                return f"{checkpoint / file} is damaged: {size:,} bytes of {written['bytes']:,}"
            if digest != written["sha256"]:
                return f"{checkpoint / file} is damaged: its checksum is not the one in {MANIFEST}"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    return ""


def manifest(checkpoint: Path) -> dict[str, Any] | None:
    """What manifest.json says; None in checkpoints of earlier versions, which have none."""
    return _read_signed(checkpoint / MANIFEST)


def number(checkpoint: Path) -> int | None:
    """The step in a checkpoint's name; None if it was renamed."""
    match = re.fullmatch(r"step_(\d+)", checkpoint.name)
    return int(match[1]) if match else None


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What state.pt says, and after it score.json if there is one."""
    state = unpickle(checkpoint / "state.pt")
    if not isinstance(state, dict) or not {"step", "optimizer", "scaler", "task"} <= state.keys():
        raise ValueError(f"{checkpoint / 'state.pt'}: not the state of a run of this library")
    return state


def load_score(checkpoint: Path) -> dict[str, Any]:
    """What score.json says; nothing if there is none.  ValueError if it is damaged."""
    return _read_signed(checkpoint / SCORE) or {}


# -- parts -------------------------------------------------------------------------------------


def _signed(content: Mapping[str, Any]) -> bytes:
    """JSON that holds its own checksum."""
    return json.dumps({**content, "check": _check(content)}, indent=2).encode()


def _read_signed(path: Path) -> dict[str, Any] | None:
    """None if there is no such file; ValueError if it is not as it was written."""
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("check", None) != _check(content):
        raise ValueError(f"{path} is damaged: its checksum is not the one in it")
    return content


def _check(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _measure(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _fault_unlisted(checkpoint: Path) -> str:
    """What can be found wrong without a manifest: missing and cut off files, and bits of state.pt."""
    state = checkpoint / "state.pt"
    if zipfile.is_zipfile(state):
        with zipfile.ZipFile(state) as archive:
            if archive.testzip():
                return f"{state} is damaged: its checksums are wrong"
    if load_state(checkpoint).get("run"):
        return f"{checkpoint / MANIFEST} is missing"
    for file in ("model.safetensors", "ema.safetensors"):
        if file == "model.safetensors" or (checkpoint / file).exists():
            try:
                with safe_open(checkpoint / file, "pt"):
                    pass
            except SafetensorError as error:
                return f"{checkpoint / file} is damaged: {error}"
    return ""


def _plain(value: Any) -> Any:
    """Tuples as lists, recursively: YAML that any reader loads."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
