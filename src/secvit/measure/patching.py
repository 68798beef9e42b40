"""`secvit patch-report`: what `secvit.patch` does to a given model, size by size, on this machine.

Speeds are ratios within a round, see `rounds`; memory is that of fresh processes, see `peak`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from secvit.adapt.patching import DEFAULTS
from secvit.layers import route_linears
from secvit.measure.macs import count_macs
from secvit.measure.parts import forward_parts
from secvit.measure.patch_results import BASES, Agreement, PatchReport, SizeResult, break_even_of
from secvit.measure.peak import peak_memory
from secvit.measure.results import head, save_result, using_threads
from secvit.measure.rounds import Clock, Speeds, clock_for, clock_name, interleave
from secvit.measure.speed import DTYPES, check_settings, inference, made_up_images, training_step
from secvit.measure.variants import clustering, features, load, num_heads, photographs, readable, variant
from secvit.ops import DEFAULT_QUALITY, PARTITIONS, chosen_quality

RIVALS = ("window", "random")  # what a partition has to be better than


def patch_report(
    run: str | nn.Module,
    size: Sequence[int] = (224, 448, 896),
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    *,
    quality: str | None = None,
    model: str | None = None,
    layers: Sequence[int] | None = None,
    partition: str = "auto",
    near: int | None = None,
    far: bool = False,
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
    route: bool = False,
    photos: Sequence[str] = (),
    json: str | None = None,
    plot: str | None = None,
    progress: bool = False,
) -> PatchReport:
    """Work, speed, memory and features of a vision transformer with its attention in clusters beside the original;
    and the size from which on it is the faster one on this machine.  At a small size the original usually is.
    Beside it: what secvit.patch does by default, if that is another, and as many windows and random groups.

    run: a timm name, a run, a weight file, the folder of a transformers vision model, or a model.
    size: height and width of square images in px, one or more; position tables are resampled to each.
    num_clusters: clusters at every size.
    cluster_size: most tokens of a cluster.
    quality: fast, balanced or faithful; balanced where no number is given.  Clusters that see each other, as many as
        the number of tokens asks for.
    model: name of the network of a weight file that has no config.yaml beside it.
    layers: layers to patch, counted from 0; else all.
    partition: tree, sec, or a rival: window, raster, random, ...; auto is tree with a quality, sec with a number.
    near: with a number: clusters that each attends to, itself among them; 1 if not given.
    far: with a number: each cluster attends to a summary of every other one, too.
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
    route: the linear layers of all that is compared take oneDNN where secvit's do (`secvit.route_linears`).
    photos: files, or folders of them, to compare the features on; made-up squares and noise without them.
    json: also write all numbers to this file.
    plot: also draw speed and memory over the size, PNG, PDF, ...
    Raises ValueError for models that cannot be patched and for sizes that their patches do not fill.
    """
    quality = chosen_quality(quality, num_clusters, cluster_size, near, far or None)
    request = Request(
        tuple(sorted(set(size))), num_clusters, cluster_size, quality, layers, partition, near, far, shared,
        share_order_every, batch_size, rounds, threads, dtype, device, training, unfused, pretrained, route,
        tuple(photos),
    )  # fmt: skip
    _check(request, json, plot)
    report = _measure(run, model, request, progress)
    _write(report, json, plot)
    return report


@dataclass(frozen=True)
class Request:
    """The arguments of `patch_report` that decide a number."""

    sizes: tuple[int, ...]
    num_clusters: int | None
    cluster_size: int | None
    quality: str | None
    layers: Sequence[int] | None
    partition: str
    near: int | None
    far: bool
    shared: bool
    share_order_every: int
    batch_size: int
    rounds: int
    threads: int
    dtype: str
    device: str
    training: bool
    unfused: bool
    pretrained: bool
    route: bool
    photos: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """Those of `secvit.patch`."""
        names = ("num_clusters", "cluster_size", "quality", "layers", "partition", "shared", "share_order_every")
        return {**{name: getattr(self, name) for name in names}, "near": self.near, "far": self.far or None}

    @property
    def compared(self) -> dict[str, dict[str, Any]]:
        """Options of `secvit.patch` of all that is compared with the original, by name."""
        plain = {name: value for name, value in self.options.items() if value != DEFAULTS[name]}
        default = {"quality": DEFAULT_QUALITY}
        others = {name: {**self.options, "partition": name} for name in RIVALS if name != self.partition}
        return {"patched": self.options, **({} if plain == default else {"default": default}), **others}

    @property
    def modes(self) -> tuple[str, ...]:
        return ("inference", "training")[: 1 + self.training]

    @property
    def recipe(self) -> dict[str, Any]:
        """As it is written down: no folders."""
        entries = {name: getattr(self, name) for name in vars(self)}
        return {**entries, "sizes": list(self.sizes), "photos": [Path(path).name for path in self.photos]}


def _check(request: Request, json: str | None, plot: str | None) -> None:
    if plot:
        from secvit.draw.picture import check_output

        check_output(plot)
    sizes, rounds, batch_size = request.sizes, request.rounds, request.batch_size
    if not sizes or rounds < 1 or batch_size < 1:
        raise ValueError(f"size={list(sizes)}, rounds={rounds}, batch_size={batch_size}; give one or more of each")
    if request.partition not in ("auto", *PARTITIONS):
        raise ValueError(
            f"partition={request.partition!r}; a report compares built-in ones: choose {', '.join(PARTITIONS)}"
        )
    check_settings([request.dtype], request.device, json)


def _measure(run: str | nn.Module, network: str | None, request: Request, progress: bool) -> PatchReport:
    original, weights = load(run, request.pretrained, network)
    if request.route:
        route_linears(original)
    for side in request.sizes:  # whatever cannot be should be said before minutes of work
        variant(original, "patched", side, request.options)
    photos, notes = readable(request.photos) if request.photos else ([], [])
    threads, device = request.threads, request.device
    report = PatchReport(
        made=head("secvit patch-report", {**request.recipe, "photos": [path.name for path in photos]}, threads, device),
        model=type(run).__name__ if isinstance(run, nn.Module) else Path(run).name,
        weights=weights,
        clock=clock_name(threads, device),
        load_before=os.getloadavg()[0],
        notes=notes,
    )
    with (
        using_threads(threads),
        tqdm(total=len(request.sizes) * 4, desc="patch-report", disable=not progress) as bar,
    ):
        for side in request.sizes:
            result, notes = _at_size(original, side, request, photos, bar)
            report.sizes.append(result)
            report.notes += notes
            # the smallest size that loads the code of clustering too
            warm = next((one.size for one in report.sizes if one.clusters > 1), side)
            for mode in request.modes:
                result.peak[mode] = _peaks(original, result, request, mode, warm)
            bar.update()
    report.break_even = {mode: break_even_of(report.sizes, mode) for mode in request.modes}
    report.load_after = os.getloadavg()[0]
    return report


def _peaks(original: nn.Module, result: SizeResult, request: Request, mode: str, warm: int) -> dict[str, int | None]:
    """Memory of the original, patched and by default; rivals need what the patched model does."""
    names = [name for name in result.inference.speeds if name not in RIVALS] if mode == "inference" else BASES
    return {
        name: peak_memory(
            original, "patched" if name == "default" else name, result.size,
            request.compared.get(name, request.options), request.batch_size, mode, request.dtype, request.device,
            request.threads, warm,
        )
        for name in names
    }  # fmt: skip


def _write(report: PatchReport, json: str | None, plot: str | None) -> None:
    if json is not None:
        save_result(report.written(), json)
    if plot:
        from secvit.measure.patch_picture import draw_patch_report

        draw_patch_report(report, plot)


def _at_size(
    original: nn.Module, size: int, request: Request, photos: Sequence[Path], bar: tqdm[Any]
) -> tuple[SizeResult, list[str]]:
    """All but the memory; and notes on what was left out."""
    options, dtype, device, batch = request.options, request.dtype, request.device, request.batch_size
    clock = clock_for(request.threads, device)
    macs = {name: count_macs(variant(original, name, size, options), (3, size, size)) for name in BASES}
    images = made_up_images(batch, size).to(device)
    networks = {"original": variant(original, "original", size, {}).to(device)}
    for name, how in request.compared.items():
        networks[name] = variant(original, "patched", size, how).to(device)
    calls = {name: inference(network, images, dtype) for name, network in networks.items()}  # also sets the dtype
    seen = photographs(photos, size, original, batch) if photos else [images]
    length, agreement = _agreement(networks, (some.to(device, DTYPES[dtype]) for some in seen))
    for name in networks.keys() - agreement.keys() - {"original"}:
        del calls[name]
    settings = clustering(networks["patched"])
    bar.update()
    notes = []
    if request.unfused:
        needed = _unfused_bytes(original, batch, length + settings.num_prefix_tokens, dtype)
        if needed > (free := _free_bytes(device)) / 2:
            about = f"about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            notes.append(f"unfused was not run at {size} px: its L x L weights would need {about}")
        else:
            calls["unfused"] = inference(variant(original, "unfused", size, options).to(device), images, dtype)
    speeds = _speeds(calls, request.rounds, clock)
    bar.update()
    parts = forward_parts(networks["patched"], images.to(DTYPES[dtype]), request.rounds, clock)
    result = SizeResult(
        size, length, settings.num_prefix_tokens, settings.clusters_for(length), macs, agreement["patched"].means, {},
        speeds, parts, agreement=agreement,
    )  # fmt: skip
    if request.training:
        del calls, networks
        networks = {name: variant(original, name, size, options).to(device) for name in BASES}
        steps = {name: training_step(network, images, dtype) for name, network in networks.items()}
        result.training = _speeds(steps, request.rounds, clock)
    bar.update()
    return result, notes


def _speeds(calls: Mapping[str, Callable[[], object]], rounds: int, clock: Clock) -> Speeds:
    # the patched model is the one that is timed twice: where a call takes long, it is the shorter one
    return Speeds.of(interleave(calls, "patched", rounds, clock), calls, "original", "patched")


def _agreement(networks: Mapping[str, nn.Module], batches: Iterable[Tensor]) -> tuple[int, dict[str, Agreement]]:
    """L, and how near the features of each are to the original's; of those that attend to all, "patched" alone."""
    prefix = clustering(networks["patched"]).num_prefix_tokens
    length = 0
    agreement: dict[str, Agreement] = {}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)  # of random groups
        for images in batches:
            x, x_pooled = features(networks["original"], images)
            length = x.shape[1] - prefix
            for name, network in networks.items():
                clusters = 1 if name == "original" else clustering(network).clusters_for(length)
                if name != "patched" and clusters == 1:
                    continue
                y, y_pooled = features(network, images)
                one = agreement.setdefault(name, Agreement(clusters, [], []))
                tokens = F.cosine_similarity(x[:, prefix:].float(), y[:, prefix:].float(), dim=-1).mean(dim=1)
                one.tokens += tokens.tolist()
                one.pooled += F.cosine_similarity(x_pooled.float(), y_pooled.float(), dim=-1).tolist()
    return length, agreement


def _unfused_bytes(model: nn.Module, batch_size: int, length: int, dtype: str) -> int:
    # products, their softmax, and one copy on the way
    return 3 * batch_size * num_heads(model) * length**2 * DTYPES[dtype].itemsize


def _free_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
