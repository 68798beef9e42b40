"""Numbers beside the pictures: do clusters follow objects, do they lie together, do they stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from secvit.images import to_rgb
from secvit.ops import Partition, shown_name
from secvit.vis.clusters import ClusterMap, enlarged, maps_of, normalised
from secvit.vis.record import LayerKeys, record_keys

UNTURNED = " of unturned keys"  # before rotary positions, which make k-means find rows of the image
RIVALS = ("sec", "sec" + UNTURNED, "random", "random_projection", "window", "kmeans", "kmeans" + UNTURNED)
CHANGES = ("noise", "flip", "bfloat16")
IGNORED = 255  # in masks


def purity(labels: Tensor, mask: np.ndarray) -> float:
    """Share of a photo's pixels that are of their cluster's most frequent class.  labels (H, W), mask (h, w)

    Pixels of class 255 do not count; NaN where there is no other.  It is never below `purity_floor`, and grows
    with the number of clusters: compare partitions of one number.
    """
    counted = mask != IGNORED
    both = enlarged(labels, *mask.shape)[counted].astype(np.int64) * (IGNORED + 1) + mask[counted]
    counts = np.bincount(both, minlength=(int(labels.max()) + 1) * (IGNORED + 1)).reshape(-1, IGNORED + 1)
    return float(counts.max(1).sum() / counts.sum()) if counts.any() else float("nan")


def purity_floor(mask: np.ndarray) -> float:
    """Purity of one cluster that holds everything: the share of the most frequent class."""
    return purity(torch.zeros(1, 1, dtype=torch.long), mask)


def compactness(labels: Tensor) -> float:
    """How much nearer tokens are to their cluster's middle than to the image's.  labels (H, W) -> 0..1

    The share of the variance of tokens' places that lies between clusters: 0 for clusters that each spread over
    the whole image, as random ones do; near 1 for small patches.
    """
    height, width = labels.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([y, x], dim=-1).reshape(-1, 2).double()
    members = torch.nn.functional.one_hot(labels.flatten()).double()
    sums, sizes = members.T @ places, members.sum(0)
    centres = sums / sizes.clamp_min(1).unsqueeze(1)
    total = (places - places.mean(0)).square().sum()
    within = (places - members @ centres).square().sum()
    return float(1 - within / total) if total else 1.0


def kept_together(before: Tensor, after: Tensor) -> float:
    """Of the pairs of tokens that share a cluster before, the share that still do after.  labels of one shape -> 0..1

    About 1 / M for two partitions that have nothing to do with each other; 1 where a cluster has one token only.
    """
    shape = int(before.max()) + 1, int(after.max()) + 1
    pair = before.flatten() * shape[1] + after.flatten()
    both = pair.bincount(minlength=shape[0] * shape[1]).view(shape).double()
    sizes = both.sum(1)
    pairs = (sizes * (sizes - 1)).sum()
    return float((both * (both - 1)).sum() / pairs) if pairs else 1.0


# -- of a network on a photo -------------------------------------------------------------------


def cluster_metrics(
    model: nn.Module,
    image: Image.Image,
    mask: np.ndarray | None = None,
    stages: Sequence[int] | None = None,
    block: int | str | None = None,
    *,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    partitions: Sequence[Partition] = RIVALS,
    stability: bool = True,
    seed: int = 0,
    keys: Sequence[LayerKeys] | None = None,
) -> list[dict[str, Any]]:
    """A row for each stage, block, head and partition of the same keys: compactness, stability, purity.

    mask (h, w): class of each pixel, 255 for none; without it no purity.
    partitions: as in `secvit.cluster`; a name with " of unturned keys" is for those before rotary positions.
    num_clusters | cluster_size: for all layers; else each layer's own, and layers of one cluster are left out.
    Stability is `kept_together` under noise of one grey level, a mirrored photo, and bfloat16 arithmetic.  Random
    partitions are drawn anew each time, as the network does.
    keys: what `record_keys` gave for this photo and these blocks; recorded here if None.
    """
    recorded = record_keys(model, normalised(image, model), stages, block) if keys is None else keys
    changed = _changed(model, image, stages, block, seed) if stability else {}
    floor = {} if mask is None else {"floor": purity_floor(mask)}
    rows = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, layer in enumerate(recorded):
            if num_clusters is None and cluster_size is None and layer.num_clusters == 1:
                continue
            for partition in partitions:
                if _unturned(partition) and layer.unturned is None:
                    continue
                maps = _cut(layer, partition, num_clusters, cluster_size)
                others = {
                    name: _cut(those[i], partition, num_clusters, cluster_size) for name, those in changed.items()
                }
                for cluster_map in maps:
                    row: dict[str, Any] = {
                        "stage": cluster_map.stage,
                        "block": cluster_map.block,
                        "head": cluster_map.head,
                    }
                    row |= {
                        "partition": shown_name(partition),
                        "clusters": cluster_map.num_clusters,
                        "tokens": cluster_map.labels.numel(),
                    }
                    row |= {"least": int(cluster_map.sizes.min()), "most": int(cluster_map.sizes.max())}
                    row["compactness"] = compactness(cluster_map.labels)
                    for name, those in others.items():
                        after = those[cluster_map.head].labels
                        row[name] = kept_together(cluster_map.labels, after.flip(1) if name == "flip" else after)
                    if mask is not None:
                        row |= {"purity": purity(cluster_map.labels, mask), **floor}
                    rows.append(row)
    return rows


def mask_of(photo: Path, masks: Path) -> np.ndarray:
    """The classes of a photo's pixels: in the file, or in the folder's file of the photo's name."""
    from secvit.segmentation.data import MASKS, read_mask

    tried = [masks / f"{photo.stem}{kind}" for kind in MASKS] if masks.is_dir() else [masks]
    file = next((path for path in tried if path.is_file()), None)
    if file is None:
        raise ValueError(f"{tried[0]}: no mask for {photo.name}; give a folder of masks with the photos' names")
    mask = read_mask(file)
    if mask.dtype != np.uint8:
        raise ValueError(f"{file}: holds the value {mask.max()}; purity takes class numbers of 0 to 254")
    return mask


def _unturned(partition: Partition) -> TypeGuard[str]:
    return isinstance(partition, str) and partition.endswith(UNTURNED)


def _cut(keys: LayerKeys, partition: Partition, num_clusters: int | None, cluster_size: int | None) -> list[ClusterMap]:
    if _unturned(partition):
        keys, partition = keys.without_rotary(), partition.removesuffix(UNTURNED)
    return maps_of(keys, "all", num_clusters, cluster_size, partition)


def _changed(
    model: nn.Module, image: Image.Image, stages: Sequence[int] | None, block: int | str | None, seed: int
) -> Mapping[str, list[LayerKeys]]:
    """Keys of the photo with noise of one grey level, mirrored, and in bfloat16."""
    pixels = np.asarray(to_rgb(image)).astype(np.int16)
    noise = np.random.default_rng(seed).integers(-1, 2, pixels.shape)
    noisy = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    device = next(model.parameters()).device.type
    recorded = {}
    for name, seen in zip(CHANGES, (noisy, ImageOps.mirror(image), image), strict=True):
        with torch.autocast(device, torch.bfloat16) if name == "bfloat16" else nullcontext():
            recorded[name] = record_keys(model, normalised(seen, model), stages, block)
    return recorded


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over photos, by stage, block, head and partition, as a Markdown table."""
    columns = [name for name in ("purity", "floor", "compactness", *CHANGES) if rows and name in rows[0]]
    lines = [f"| stage | block | head | partition | clusters | tokens of each | {' | '.join(columns)} |"]
    lines.append("|---|---|---|---|---|---|" + "---|" * len(columns))
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["stage"], row["block"], row["head"], row["partition"]), []).append(row)
    for (stage, block, head, partition), same in groups.items():
        clusters = _span([row["clusters"] for row in same])
        tokens = _span([row[name] for row in same for name in ("least", "most")])
        means = " | ".join(f"{np.nanmean([row[name] for row in same]):.3f}" for name in columns)
        lines.append(f"| {stage + 1} | {block + 1} | {head + 1} | {partition} | {clusters} | {tokens} | {means} |")
    return "\n".join(lines) + "\n"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}–{high}"
