"""`secvit patch-report`: what `secvit.patch` does to a given model, size by size, on this machine.

Speeds are ratios within a round, see `rounds`; memory is that of fresh processes, see `peak`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from secvit.measure.macs import count_macs
from secvit.measure.parts import PARTS, forward_parts
from secvit.measure.peak import peak_memory
from secvit.measure.results import environment_lines, head, made_with, save_result, shown_ratio, table, using_threads
from secvit.measure.rounds import NULL, Clock, clock_for, clock_name, interleave, is_quiet, speed_ratio
from secvit.measure.speed import DTYPES, check_settings, inference, pictures, training_step
from secvit.measure.variants import clustering, features, load, num_heads, photographs, variant
from secvit.ops import PARTITIONS

BASES = ("original", "patched")


def patch_report(
    run: str | nn.Module,
    size: Sequence[int] = (224, 448, 896),
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    *,
    model: str | None = None,
    layers: Sequence[int] | None = None,
    partition: str = "sec",
    shared: bool = False,
    share_order_every: int = 1,
    batch_size: int = 1,
    rounds: int = 7,
    threads: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    training: bool = False,
    unfused: bool = False,
    pretrained: bool = False,
    images: Sequence[str] = (),
    json: str | None = None,
    plot: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Work, speed, memory and features of a vision transformer with its attention in clusters beside the original.

    And the size from which on it is faster on this machine; `patch_markdown` and `secvit.vis.draw_patch_report` show
    the result.  At a small size the original is usually the faster one, and the report says so.

    run: a timm name, a run, a weight file, the folder of a transformers vision model, or a model.
    size: height and width of square images in px, one or more; position tables are resampled to each.
    num_clusters: clusters at every size.
    cluster_size: most tokens of a cluster (196 where neither is given).
    model: name of the network of a weight file that has no config.yaml beside it.
    layers: layers to patch, counted from 0; else all.
    partition: sec, or a rival: window, raster, random, ...
    shared: one order for all heads.
    share_order_every: so many layers go by one order.
    batch_size: images at a time.
    rounds: measurements of each speed, after a warm-up.
    threads: 1 measures processor time, more measure wall clock, as a GPU does.
    dtype: float32 or bfloat16 (weights in it for inference, autocast for training).
    device: cpu or cuda.
    training: training steps too.
    unfused: also the original with its L x L weights written out, where memory suffices.
    pretrained: weights from timm's hub, which downloads them; otherwise random ones of seed 0.
    images: photos to compare the features on; made-up squares and noise without them.
    json: also write all numbers to this file.
    plot: also draw speed and memory over the size, PNG, PDF, ...
    Raises ValueError for models that cannot be patched and for sizes that their patches do not fill.
    """
    if plot:
        from secvit.draw.picture import check_output

        check_output(plot)
    if not size or rounds < 1 or batch_size < 1:
        raise ValueError(f"size={list(size)}, rounds={rounds}, batch_size={batch_size}; give one or more of each")
    if partition not in PARTITIONS:
        raise ValueError(f"partition={partition!r}; a report compares built-in ones: choose {', '.join(PARTITIONS)}")
    check_settings([dtype], device, json)
    sizes = sorted(set(size))
    if num_clusters is None and cluster_size is None:
        cluster_size = 196
    options = {
        "num_clusters": num_clusters, "cluster_size": cluster_size, "layers": layers, "partition": partition,
        "shared": shared, "share_order_every": share_order_every,
    }  # fmt: skip
    original, weights = load(run, pretrained, model)
    for side in sizes:  # whatever cannot be should be said before minutes of work
        variant(original, "patched", side, options)
        photographs(images, side, original) if images else None
    setting: dict[str, Any] = {
        "options": options, "batch_size": batch_size, "dtype": dtype, "device": device, "threads": threads,
    }  # fmt: skip
    recipe = {
        "sizes": sizes, **options, "batch_size": batch_size, "rounds": rounds, "threads": threads,
        "dtype": dtype, "device": device, "training": training, "unfused": unfused, "pretrained": pretrained,
        "images": [Path(path).name for path in images],
    }  # fmt: skip
    result: dict[str, Any] = {
        **head("secvit patch-report", recipe, threads, device),
        "model": type(run).__name__ if isinstance(run, nn.Module) else Path(run).name,
        "load_before": os.getloadavg()[0], "clock": clock_name(threads, device),
        "weights": weights, "notes": [], "sizes": [],
    }  # fmt: skip
    clock = clock_for(threads, device)
    with using_threads(threads), tqdm(total=len(sizes) * 4, desc="patch-report", disable=not progress) as bar:
        for side in sizes:
            found, note = _at_size(original, side, setting, rounds, clock, training, unfused, images, bar)
            result["sizes"].append(found)
            # the smallest size that loads the code of clustering too
            warm = next((at["size"] for at in result["sizes"] if at["clusters"] > 1), side)
            for mode in ("inference", "training")[: 1 + training]:
                found["peak"][mode] = {
                    name: peak_memory(original, name, side, mode=mode, warm_size=warm, **setting)
                    for name in (found["inference"]["speeds"] if mode == "inference" else BASES)
                }
            bar.update()
            result["notes"] += note
    result["break_even"] = {
        mode: _break_even_of(result["sizes"], mode) for mode in ("inference", "training")[: 1 + training]
    }
    result["load_after"] = os.getloadavg()[0]
    if json is not None:
        save_result(result, json)
    if plot:
        from secvit.measure.patching_picture import draw_patch_report

        draw_patch_report(result, plot)
    return result


def _at_size(
    original: nn.Module, size: int, setting: dict[str, Any], rounds: int, clock: Clock, training: bool, unfused: bool,
    photos: Sequence[str], bar: tqdm[Any],
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """All but the memory; and notes on what was left out."""
    options, dtype, device, batch = (setting[name] for name in ("options", "dtype", "device", "batch_size"))
    macs = {name: count_macs(variant(original, name, size, options), (3, size, size)) for name in BASES}
    images = pictures(batch, size).to(device)
    networks = {name: variant(original, name, size, options).to(device) for name in BASES}
    seen = photographs(photos, size, original) if photos else images
    calls = {name: inference(network, images, dtype) for name, network in networks.items()}  # also sets the dtype
    cosines, length = _cosines(networks, seen.to(device, DTYPES[dtype]), batch)
    settings = clustering(networks["patched"])
    found: dict[str, Any] = {
        "size": size, "tokens": length, "prefix_tokens": settings.num_prefix_tokens,
        "clusters": settings.clusters_for(length),
        "macs": {name: {**vars(count), "total": count.total} for name, count in macs.items()},
        "cosine": cosines, "peak": {},
    }  # fmt: skip
    bar.update()
    notes = []
    if unfused:
        needed = _unfused_bytes(original, batch, length + settings.num_prefix_tokens, dtype)
        if needed > (free := _free_bytes(device)) / 2:
            about = f"about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            notes.append(f"unfused was not run at {size} px: its L x L weights would need {about}")
        else:
            calls["unfused"] = inference(variant(original, "unfused", size, options).to(device), images, dtype)
    found["inference"] = _speeds(calls, rounds, clock)
    bar.update()
    found["parts"] = forward_parts(networks["patched"], images.to(DTYPES[dtype]), rounds, clock)
    if training:
        del calls, networks
        networks = {name: variant(original, name, size, options).to(device) for name in BASES}
        steps = {name: training_step(network, images, dtype) for name, network in networks.items()}
        found["training"] = _speeds(steps, rounds, clock)
    bar.update()
    return found, notes


def _speeds(calls: dict[str, Any], rounds: int, clock: Clock) -> dict[str, Any]:
    # the patched model is the one that is timed twice: where a call takes long, it is the shorter one
    seconds = interleave(calls, "patched", rounds, clock)
    return {
        "speeds": {name: vars(speed_ratio(seconds, name, "original")) for name in calls},
        "null": vars(speed_ratio(seconds, "patched" + NULL, "patched")),
        "quiet": is_quiet(seconds, "patched"), "seconds": seconds,
    }  # fmt: skip


def _cosines(networks: dict[str, nn.Module], images: Tensor, batch_size: int) -> tuple[dict[str, float], int]:
    """Cosine of patched to original features: mean over patch tokens and images, and of the pooled ones; and L."""
    prefix = clustering(networks["patched"]).num_prefix_tokens
    tokens, pooled, length = [], [], 0
    with torch.inference_mode():
        for some in images.split(batch_size):
            (x, x_pooled), (y, y_pooled) = (features(networks[name], some) for name in BASES)
            tokens.append(F.cosine_similarity(x[:, prefix:].float(), y[:, prefix:].float(), dim=-1).mean(dim=1))
            pooled.append(F.cosine_similarity(x_pooled.float(), y_pooled.float(), dim=-1))
            length = x.shape[1] - prefix
    return {"tokens": float(torch.cat(tokens).mean()), "pooled": float(torch.cat(pooled).mean())}, length


def _unfused_bytes(model: nn.Module, batch_size: int, length: int, dtype: str) -> int:
    # products, their softmax, and one copy on the way
    return 3 * batch_size * num_heads(model) * length**2 * DTYPES[dtype].itemsize


def _free_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# -- what a user wants to know -----------------------------------------------------------------


def break_even(sizes: Sequence[int], speeds: Sequence[float]) -> float | None:
    """The size from which on the ratio of speeds stays above 1, between measured sizes by log-log interpolation.

    None where it is above 1 at all sizes, or not at the last.
    """
    slower = [i for i, speed in enumerate(speeds) if speed <= 1]
    if not slower or slower[-1] == len(sizes) - 1:
        return None
    i = slower[-1]
    below, above = math.log(speeds[i]), math.log(speeds[i + 1])
    return sizes[i] * (sizes[i + 1] / sizes[i]) ** (-below / (above - below))


def _break_even_of(found: Sequence[dict[str, Any]], mode: str) -> dict[str, Any]:
    # with one cluster it is the same model, and its ratio is noise
    clustered = [at for at in found if at["clusters"] > 1]
    sizes = [at["size"] for at in clustered]
    speeds = [at[mode]["speeds"]["patched"]["median"] for at in clustered]
    at = break_even(sizes, speeds)
    faster = [size for size, speed in zip(sizes, speeds) if speed > 1]
    if not clustered:
        sentence = "one cluster holds all tokens at every size measured, so the patched model is the original"
    elif at is not None:
        sentence = f"faster from about {round(at, -1):.0f} px on"
    elif not faster:
        sentence = f"not faster at any size measured: leave this model as it is at {_and(sizes)} px"
    elif len(faster) == len(sizes):
        sentence = f"faster at all sizes measured ({_and(sizes)} px)"
    else:
        sentence = f"faster only at {_and(faster)} px, and not at {sizes[-1]} px: there is no size from which on it is"
    noisy = [at["size"] for at in clustered if not at[mode]["quiet"]]
    if noisy:
        sentence += f" (too noisy to quote at {_and(noisy)} px)"
    return {"size": at, "sentence": sentence}


def _and(sizes: Sequence[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, sizes[:-1])), str(sizes[-1])]))


# -- as Markdown -------------------------------------------------------------------------------


def patch_markdown(result: dict[str, Any]) -> str:
    """What `patch_report` returned, as the tables and sentences of a page or a terminal."""
    recipe, found = result["recipe"], result["sizes"]
    batch = "one image" if recipe["batch_size"] == 1 else f"{recipe['batch_size']} images"
    lines = [
        f"## {result['model']}, patched: {_patched_how(recipe)}",
        "",
        made_with(result),
        f"{batch}, {recipe['dtype']}; {recipe['rounds']} rounds, {result['clock']}; median (least .. greatest) of the "
        "ratios within a round; above 1 the patched model is the faster one.",
        *environment_lines(result),
    ]
    verdict = [f"**{mode}: {at['sentence']}.**" for mode, at in result["break_even"].items()]
    verdict += [line for at in found for line in _advice(at, result["break_even"])]
    verdict += [f"{note}." for note in result["notes"]]
    blocks = [lines, verdict, _speed_table(result), _memory_table(found), _parts_table(found)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _patched_how(recipe: dict[str, Any]) -> str:
    parts = [
        f"{recipe['num_clusters']} clusters" if recipe["num_clusters"] else f"clusters of {recipe['cluster_size']}",
        f"by {recipe['partition']}" if recipe["partition"] != "sec" else "",
        f"one order for {recipe['share_order_every']} layers" if recipe["share_order_every"] > 1 else "",
        "one order for all heads" if recipe["shared"] else "",
        f"layers {', '.join(map(str, recipe['layers']))}" if recipe["layers"] else "",
    ]
    return ", ".join(filter(None, parts))


def _advice(at: dict[str, Any], modes: Iterable[str]) -> list[str]:
    if at["clusters"] == 1:
        return [f"At {at['size']} px one cluster holds all {at['tokens']} tokens: nothing changes."]
    ratios = {mode: at[mode]["speeds"]["patched"]["median"] for mode in modes}
    slower = [f"{ratio:.2f} of the original's speed ({mode})" for mode, ratio in ratios.items() if ratio <= 1]
    if not slower:
        return []
    verdict = "not worth it there" if len(slower) == len(ratios) else "there it is worth it for the other only"
    return [f"At {at['size']} px the patched model has {', '.join(slower)}: {verdict}."]


def _speed_table(result: dict[str, Any]) -> list[str]:
    found = result["sizes"]
    modes = [mode for mode in ("inference", "training") if mode in found[0]]
    unfused = any("unfused" in at["inference"]["speeds"] for at in found)
    columns = [
        "px", "tokens", "clusters", "GMAC, original", "patched", *(f"{mode}, original = 1" for mode in modes),
        *(["unfused original"] if unfused else []), "null pair", "cosine of tokens", "of pooled",
    ]  # fmt: skip
    rows = []
    for at in found:
        speeds = at["inference"]["speeds"]
        nulls = [f"{at[mode]['null']['median']:.2f}" for mode in modes]
        macs = [f"{at['macs'][name]['total'] / 1e9:.2f}" for name in BASES]
        cosines = [f"{at['cosine'][name]:.3f}" for name in ("tokens", "pooled")]
        rows.append(
            [str(at["size"]), f"{at['prefix_tokens']} + {at['tokens']}", str(at["clusters"]), *macs]
            + [shown_ratio(at[mode]["speeds"]["patched"]) for mode in modes]
            + ([shown_ratio(speeds["unfused"]) if "unfused" in speeds else "not run"] if unfused else [])
            + [", ".join(nulls), *cosines]
        )
    photos = result["recipe"]["images"]
    seen = f"{len(photos)} photo{'s' * (len(photos) > 1)}" if photos else "made-up images"
    remark = f"Cosine of patched to original features on {seen}"
    if result["weights"] == "random":
        remark += "; the weights are random, so it says little about a trained model"
    return ["### Work, speed and features", "", *table(columns, rows), "", remark + "."]


def _memory_table(found: list[dict[str, Any]]) -> list[str]:
    modes = list(found[0]["peak"])
    unfused = any("unfused" in at["peak"]["inference"] for at in found)
    columns = ["px"]
    for mode in modes:
        columns += [f"{mode}, original", "patched", "patched / original"]
        columns += ["unfused original"] if unfused and mode == "inference" else []
    rows = []
    for at in found:
        row = [str(at["size"])]
        for mode in modes:
            peak = at["peak"][mode]
            ratio = memory_ratio(at, mode)
            row += [_mebibytes(peak["original"]), _mebibytes(peak["patched"]), f"{ratio:.2f}" if ratio else "not known"]
            if unfused and mode == "inference":
                row.append(_mebibytes(peak["unfused"]) if "unfused" in peak else "not run")
        rows.append(row)
    over = "Over what weights (in training also their gradients) and images take, each in a fresh process; "
    over += "the fused attention of the original holds no L x L weights either."
    return ["### Peak memory, MiB", "", *table(columns, rows), "", over]


def memory_ratio(at: dict[str, Any], mode: str) -> float | None:
    """Peak of the patched model over that of the original; None where a process was killed."""
    original, patched = (at["peak"][mode][name] for name in BASES)
    return patched / original if original and patched else None


def _mebibytes(count: int | None) -> str:
    return "out of memory" if count is None else f"{count / 2**20:,.1f}"


def _parts_table(found: list[dict[str, Any]]) -> list[str]:
    rows = []
    for at in found:
        rows.append([str(at["size"]), *(f"{100 * at['parts'][part]:.1f} %" for part in ("partition", *PARTS))])
    columns = ["px", "all but the attention", *PARTS]
    return ["### Share of a patched forward pass", "", *table(columns, rows)]
