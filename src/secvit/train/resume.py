"""Which checkpoint a run goes on from, and what of it an optimizer of today takes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secvit.fields import abridged
from secvit.train import checkpoint as files

logger = logging.getLogger(__name__)
RESULT = ("model.safetensors", "result.json")  # of a run that came to its end or was stopped
HOW = {"foreach", "fused", "capturable", "differentiable"}  # options of how an optimizer computes, not what


# -- the checkpoint ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What to go on from, if anything; `damaged`: newer checkpoints of the same folder, and what is wrong with them.

    anew: the checkpoint is another folder's, and a run of its own begins with it.
    """

    checkpoint: Path | None
    damaged: Mapping[Path, str]
    anew: bool = False


def choose(output: Path, resume: str) -> Choice:
    """The checkpoint that `resume` means: "auto", "never", or the path of a checkpoint or a run."""
    own = files.complete(output)
    if not own and all((output / product).is_file() for product in RESULT):
        raise ValueError(
            f"{output} already holds a run ({' and '.join(RESULT)}), whose checkpoints are gone, so that it cannot be "
            "resumed; give another --output"
        )
    if resume == "never" and own:
        raise ValueError(
            f"{output} already holds a run (up to step {files.number(own[-1])}); leave out --resume to go on with "
            "it, or give another --output"
        )
    if resume in ("auto", "never"):
        return Choice(*files.newest_whole(output))
    checkpoint = _given(Path(resume))
    if not own:
        return Choice(checkpoint, {}, anew=True)
    if checkpoint.parent.resolve() == own[-1].parent.resolve():
        damaged = {p: files.fault(p) for p in own if p.name > checkpoint.name}
        if intact := [p.name for p, fault in damaged.items() if not fault]:
            raise ValueError(
                f"{checkpoint} is older than {intact[-1]} in the same run; leave out --resume, or give another --output"
            )
        return Choice(checkpoint, damaged)
    newest, damaged = files.newest_whole(output)
    here, there = (files.manifest(p) or {} for p in (newest or own[-1], checkpoint))
    if here.get("run") and here["run"] == there.get("run") and there["step"] >= here["step"]:
        return Choice(checkpoint, damaged)  # a later checkpoint of the same run, kept elsewhere
    if there.get("run") and here.get("origin") == [there["run"], there["step"]]:
        logger.info("%s began with %s; going on with its own step %d", output, checkpoint, here["step"])
        return Choice(newest, damaged)
    raise ValueError(
        f"{output} already holds another run than {checkpoint} (up to step {files.number(own[-1])}); give another "
        "--output, or leave out --resume to go on with the run that is there"
    )


def _given(path: Path) -> Path:
    """A checkpoint named by hand: whole, or a ValueError says which other one is."""
    if files.complete(path):
        newest, faults = files.newest_whole(path)
        for fault in faults.values():
            logger.warning("%s; going on from the previous checkpoint", fault)
        assert newest
        return newest
    if not (path / "state.pt").exists() and not (path / files.MANIFEST).exists():
        raise ValueError(f"{path}: no checkpoint there; give the folder of a run, or its checkpoints/step_N")
    if fault := files.fault(path):
        others = [p for p in files.complete(path.parent.parent) if p != path and not files.fault(p)]
        raise ValueError(fault + (f"; go on from {others[-1]}" if others else "; copy it again"))
    return path


# -- the optimizer -----------------------------------------------------------------------------


def describe_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """Kind, options and weights of each group as the recipe made them: what a resume compares.

    names: of the parameters, by id.
    """
    groups = optimizer.param_groups
    return {
        "kind": " of ".join(type(o).__name__ for o in (optimizer, getattr(optimizer, "base_optimizer", None)) if o),
        "options": [{k: v for k, v in group.items() if k != "params" and _plain(v)} for group in groups],
        "weights": [[names.get(id(p), "") for p in group["params"]] for group in groups],
    }


def adapt_optimizer(
    saved: Mapping[str, Any], began: Mapping[str, Any] | None, now: Mapping[str, Any], fresh: Mapping[str, Any]
) -> dict[str, Any]:
    """The state of a checkpoint's optimizer, with today's options and in today's groups.

    Args:
        saved, fresh: `state_dict()` of the checkpoint's optimizer and of today's, before its first step.
        began, now: `describe_optimizer` of both; None for a checkpoint of an earlier version.

    What the recipe changed since is taken from today; what the optimizer itself wrote into its groups is kept.
    ValueError for another kind of optimizer, and for weights that were not learned then or are not now.
    """
    old, new = saved["param_groups"], fresh["param_groups"]
    began = began or _described_from(old, now)
    if began["kind"] != now["kind"]:
        raise ValueError(f"it holds the state of {began['kind']}, the recipe wants {now['kind']}")
    if any(began["weights"]) and sorted(_flat(began["weights"])) == sorted(_flat(now["weights"])):
        place = {name: (g, i) for g, i, name in _places(began["weights"], old)}
        sources = [[place[name] for name in group] for group in now["weights"]]
    elif not any(began["weights"]) and [len(g["params"]) for g in old] == [len(g["params"]) for g in new]:
        sources = [[(g, i) for i in group["params"]] for g, group in enumerate(old)]
    else:
        raise ValueError(_other_weights(began["weights"], now["weights"]))
    state, groups = {}, []
    for group, options, source in zip(new, now["options"], sources, strict=True):
        kept = [_own(old[g], began["options"][g], options) for g in dict.fromkeys(g for g, _ in source)]
        if any(one.keys() != kept[0].keys() or not all(_same(one[k], kept[0][k]) for k in one) for one in kept[1:]):
            raise ValueError("its groups of weights were cut otherwise, and the optimizer remembers something of each")
        groups.append({**group, **(copy.deepcopy(kept[0]) if kept else {})})  # a counter is each group's own
        for (g, i), index in zip(source, group["params"], strict=True):
            _check_options(began["options"][g], options)
            if i in saved["state"]:
                state[index] = saved["state"][i]
    return {"state": state, "param_groups": groups}


def _own(saved: Mapping[str, Any], began: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Of a saved group, what the optimizer itself wrote there, unless the recipe changed it since."""
    return {
        key: value
        for key, value in saved.items()
        if key not in ("params", "param_names", "lr")
        and (key not in now or (key in began and _same(began[key], now[key]) and not _same(began[key], value)))
    }


def _check_options(began: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse changes that want another state; numbers alone don't."""
    for key in now.keys() & began.keys() - HOW:
        old, new = began[key], now[key]
        switched = key == "momentum" and bool(old) != bool(new)
        if not _same(old, new) and (switched or not (_number(old) and _number(new))):
            raise ValueError(f"its optimizer had {key}={old}, the recipe wants {new}")


def _described_from(groups: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> dict[str, Any]:
    """What can be known of an optimizer of a checkpoint that says nothing of it."""
    options = [{k: v for k, v in group.items() if k != "params" and _plain(v)} for group in groups]
    numbers = {k for k, v in now["options"][0].items() if _number(v) and k != "lr_scale"}
    if missing := sorted(numbers - options[0].keys()):
        raise ValueError(f"it holds the state of an optimizer without {missing[0]}, the recipe wants {now['kind']}")
    return {"kind": now["kind"], "options": options, "weights": [[] for _ in groups]}


def _places(weights: Sequence[Sequence[str]], groups: Sequence[Mapping[str, Any]]) -> Any:
    for g, (names, group) in enumerate(zip(weights, groups, strict=True)):
        for name, index in zip(names, group["params"], strict=True):
            yield g, index, name


def _other_weights(old: Sequence[Sequence[str]], new: Sequence[Sequence[str]]) -> str:
    before, now = set(_flat(old)), set(_flat(new))
    if not before:
        return "its optimizer has other groups of weights (frozen parts or layer decay were others)"
    parts = []
    if more := [name for name in _flat(new) if name not in before]:
        parts.append(f"{len(more)} weights learn now that were frozen ({abridged(more)})")
    if less := [name for name in _flat(old) if name not in now]:
        parts.append(f"{len(less)} weights are frozen now that learned ({abridged(less)})")
    return "; ".join(parts)


def _flat(groups: Sequence[Sequence[str]]) -> list[str]:
    return [name for group in groups for name in group]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return list(a) == list(b) if isinstance(a, list | tuple) and isinstance(b, list | tuple) else bool(a == b)


def _number(value: Any) -> bool:
    """Whether it is a number, or some, like betas."""
    return isinstance(value, int | float | list | tuple) and not isinstance(value, bool)


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(v, int | float) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
