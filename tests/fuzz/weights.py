"""Weight files: safetensors and pickles."""

from __future__ import annotations

import functools
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from secvit.weights import read_weights
from tests.fuzz.case import Case
from tests.fuzz.mutate import changed, damaged, no_json, replaced


class Saved(NamedTuple):
    """What a file must give, None where that is not known; a file that only code in a pickle would write."""

    path: Path
    state: dict[str, Tensor] | None
    marker: Path | None = None


@functools.cache
def base() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"stem.weight": (4, 3, 2, 2), "blocks.0.qkv.weight": (12, 4), "blocks.0.qkv.bias": (12,), "norm.weight": (4,),
              "head.weight": (3, 4), "head.bias": (3,)}  # fmt: skip
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**state, "norm.num_batches_tracked": torch.tensor(5)}


class _Code:
    """What runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


def _header(data: bytes, header: Any) -> bytes:
    """safetensors with another header."""
    size = struct.unpack("<Q", data[:8])[0]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def make(rng: random.Random, folder: Path) -> Case:
    state, safe, marker = dict(base()), rng.random() < 0.5, folder / "marker"
    path = folder / f"weights{'.safetensors' if safe else rng.choice(['.pth', '.pt', '.bin'])}"
    kind = rng.choice(["form", "form", "values", "values", "header", "code", "bytes", "bytes", "bytes", "files"])
    meant, change, known = "harmless", kind, dict(state)
    content: Any = state
    raw: bytes | None = None
    if kind == "form":
        change = rng.choice(
            ["as it is", "module.", "_orig_mod.", "module._orig_mod.", "half", "under model", "under state_dict"]
        )
        if change.endswith("."):
            content = {change + name: value for name, value in state.items()}
        elif change == "half":
            content = known = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        elif change.startswith("under") and not safe:
            content = {change.split()[1]: state, "epoch": 3, "optimizer": {"param_groups": [{"lr": 0.1}]}}
    elif kind == "values":
        meant, name = "wrong", "blocks.0.qkv.weight"
        change = rng.choice(["NaN", "infinity", "complex", "int8", "no dimension", "empty"])
        value = state[name].clone()
        if change in ("NaN", "infinity"):
            value.view(-1)[rng.randrange(48)] = float("nan" if change == "NaN" else "inf")
        elif change == "complex":
            value = value.to(torch.complex64)
        elif change == "int8":
            value, meant = value.to(torch.int8), "either"
        elif change == "empty":
            content, meant = {}, "either"
        else:
            value, meant = value.sum(), "either"
        if content:
            content = {**state, name: value}
        known = content
    elif kind == "header":
        meant, raw = "wrong", save(state)
        header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
        path = folder / "weights.safetensors"
        change = rng.choice(["a giant length", "changed", "no JSON", "a giant shape", "the wrong end", "overlap"])
        if change == "a giant length":
            raw = struct.pack("<Q", rng.choice([2**63, 2**40, 10**9, len(raw)])) + raw[8:]
        elif change == "no JSON":
            what, text = no_json(rng, json.dumps(header).encode())
            change, raw = f"header: {what}", _header(raw, text)
        elif change == "a giant shape":
            header["head.bias"]["shape"] = rng.choice([[2**62], [2**31, 2**31], [-3], [10**30]])
            raw = _header(raw, header)
        elif change == "the wrong end":
            header["head.bias"]["data_offsets"][1] += rng.choice([4, 10**9, -4])
            raw = _header(raw, header)
        elif change == "overlap":
            header["head.bias"]["data_offsets"] = header["stem.weight"]["data_offsets"]
            raw = _header(raw, header)
        else:
            what, header = changed(rng, header)
            change, meant, raw, known = f"header: {what.rpartition(' ')[2]}", "either", _header(raw, header), None
    elif kind == "code":
        path, meant = path.with_suffix(".pth"), "wrong"
        function = rng.choice([(os.system, f"touch '{marker}'"), (eval, f"open({str(marker)!r}, 'w')"), (open, str(marker), "w"),
                               (exec, f"open({str(marker)!r}, 'w')"), (os.mkdir, str(marker))])  # fmt: skip
        content = rng.choice(
            [{**state, "x": _Code(*function)}, {"model": state, "args": _Code(*function)}, _Code(*function)]
        )
        change = f"code: {function[0].__name__}"
    if raw is not None:
        path.write_bytes(raw)
    elif path.suffix == ".safetensors":
        path.write_bytes(save({k: v.contiguous() for k, v in content.items()}))
    elif kind == "code" and rng.random() < 0.4:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)
    if kind == "bytes":
        change, data = damaged(rng, path.read_bytes(), 0 if rng.random() < 0.5 else 8)
        path.write_bytes(data)
        meant, known = "either", None
        if rng.random() < 0.15:
            change, known = "a zip of zeros", None
            with zipfile.ZipFile(path.with_suffix(".pth"), "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("archive/data.pkl", bytes(2**22))
            path = path.with_suffix(".pth")
    elif kind == "files":
        change, meant = f"in its place: {replaced(rng, path)}", "wrong"
    change = f"{path.suffix[1:]}: {change}"
    return Case(change, meant, (str(path),), Saved(path, None if meant == "wrong" else known, marker))


def run(case: Case) -> str:
    known: Saved = case.data
    try:
        state = read_weights(known.path)
    finally:
        if known.marker and known.marker.exists():
            raise RuntimeError("a weight file ran code")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"{name!r}: {type(value).__name__}"
        if value.is_complex() or value.layout != torch.strided:
            return f"{name} is {value.dtype}"
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} holds NaN or infinity"
    if known.state is None:
        return ""
    if list(state.keys() ^ known.state.keys()):
        return f"other names: {sorted(state.keys() ^ known.state.keys())[:3]}"
    other = [name for name, value in known.state.items() if not torch.equal(state[name], value)]
    return f"other values: {other[:3]}" if other else ""
