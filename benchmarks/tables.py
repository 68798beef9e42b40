"""Write the tables of benchmarks/README.md and of other pages from the results beside it, and draw the speeds.

python benchmarks/tables.py
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gpu_report
import torch
import trained_tables

from secvit import detection
from secvit.measure.bench_picture import draw_speeds
from secvit.measure.bench_results import BenchResult, LengthTimes
from secvit.measure.connector_results import ConnectorReport
from secvit.measure.connector_tables import connector_markdown
from secvit.measure.detectors import detector_macs
from secvit.measure.patch_results import PatchReport
from secvit.measure.patch_tables import patch_markdown
from secvit.measure.report import report
from secvit.measure.results import made_with
from secvit.measure.rounds import Ratio
from secvit.measure.scaling import growth

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGES = (
    HERE / "README.md",
    HERE.parent / "README.md",
    *(DOCS / f"{page}.md" for page in ("connectors", "detection", "segmentation", "gallery")),
)
# Tables 4 and 5 as printed: millions of parameters and 1e9 multiply-accumulates at 800 x 1280, "FLOPs (G)" in the paper
PRINTED = {
    ("mask_rcnn", "secvit_tiny"): (34, 221),
    ("mask_rcnn", "secvit_small"): (45, 262),
    ("mask_rcnn", "secvit_base"): (76, 371),
    ("mask_rcnn", "secvit_large"): (119, 550),
    ("retinanet", "secvit_tiny"): (24, 202),
    ("retinanet", "secvit_small_release"): (35, 240),
    ("retinanet", "secvit_base_release"): (63, 349),
    ("retinanet", "secvit_large_release"): (105, 527),
    ("cascade_mask_rcnn", "secvit_small"): (83, 741),
    ("cascade_mask_rcnn", "secvit_base"): (114, 849),
}


def results(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and contents of the results of one kind, the latest first."""
    found = [(path.name, json.loads(path.read_text())) for path in sorted((HERE / "results").glob("*.json"))]
    chosen = [(name, result) for name, result in found if isinstance(result, dict) and result.get("kind") == kind]
    return sorted(chosen, key=lambda item: item[1]["date"], reverse=True)


def speeds() -> str:
    """The tables of every result of `secvit bench`."""
    texts = []
    for name, result in results("secvit bench"):
        picture = f"results/{name.removesuffix('.json')}.png"
        shown = f"![Speeds, and time over the number of tokens]({picture})\n\n" if (HERE / picture).is_file() else ""
        texts.append(f"## {name}\n\n{shown}{report(BenchResult.read(result))}")
    return "\n".join(texts) or "No result yet.\n"


def goals() -> str:
    """What speed was aimed at on a CPU, what one interleaved run reached, and why where it fell short."""
    benches = [BenchResult.read(result) for _, result in results("secvit bench")]
    found = next((bench for bench in benches if bench.attention), None)
    if found is None:
        return "No result yet.\n"

    def model(mode: str, dtype: str, name: str, ratio: str, compiled: bool = False) -> float:
        runs = [found] if not compiled else [bench for bench in benches if bench.made["recipe"]["compiled"]]
        tables = [table for bench in runs for table in bench.models]
        table = next(t for t in tables if (t.mode, t.dtype, t.compiled) == (mode, dtype, compiled))
        return next(getattr(row, ratio).median for row in table.rows if row.name == name)

    def scaling(lengths: list[LengthTimes], length: int, name: str) -> Ratio:
        return next(one.times_sec[name] for one in lengths if one.length == length)

    rows = ["| goal | aimed at | reached | |", "|---|---|---|---|"]
    both = ("secvit_tiny", "secvit_small")
    dense = "what is left are matrix products and convolutions, which a literal network has as well"
    for what, mode, dtype, prefix, aim in (
        ("inference, float32", "inference", "float32", "", 1.6),
        ("inference, float32, fused", "inference", "float32", "fused ", 1.75),
        ("inference, bfloat16", "inference", "bfloat16", "", 1.35),
        ("training step, float32", "training", "float32", "", 1.35),
    ):
        ratios = [model(mode, dtype, prefix + name, "vs_literal") for name in both]
        why = "" if min(ratios) >= aim else dense
        rows.append(
            f"| T and S against their literal twins, {what} | {aim} | {ratios[0]:.2f}, {ratios[1]:.2f} | {why} |"
        )
    for what, aim, name, compiled in (
        ("secvit_tiny, fused, against Swin-T", 1.6, "fused secvit_tiny", False),
        ("secvit_small, fused, against Swin-T", 0.9, "fused secvit_small", False),
        ("secvit_tiny against Swin-T, both compiled (a run of its own)", 1.5, "secvit_tiny", True),
    ):
        ratio = model("inference", "float32", name, "vs_base", compiled)
        why = "" if round(ratio, 2) >= aim else "fewer of its operations are large matrix products"
        rows.append(f"| {what}, float32 | {aim} | {ratio:.2f} | {why} |")
    for size, aim in ((224, 15), (1280, 25)):
        shares = [100 * part.shares["partition"] for part in found.parts if part.size[1] == size]
        rows.append(f"| scores, order, gathers and return, share at {size} px | <= {aim} % | {max(shares):.1f} % | |")
    mean_head = f"{scaling(found.operation, 3136, 'ToMe matching').median:.1f} on one mean head, as in its paper"
    for rival, aim, note in (("Lloyd, 10 iterations", 20, ""), ("ToMe matching, each head", 30, mean_head)):
        ratio = scaling(found.operation, 3136, rival)
        reached = f"{ratio.median:.1f} ({ratio.low:.1f} .. {ratio.high:.1f})"
        rows.append(f"| the operation at 3,136 tokens against {rival} | {aim} | {reached} | {note} |")
    rows.append(f"| its growth up to 65,536 tokens, exponent | <= 1.05 | {growth(found.operation)['sec']:.2f} | |")
    ratio = scaling(found.attention, 16384, "global").median
    rows.append(f"| attention at 2048 px (16,384 tokens) against all tokens | 8 | {ratio:.0f} | |")
    return _table(rows)


def on_a_gpu() -> str:
    """What was aimed at on a GPU, and the tables of the latest run there, if there is one."""
    found = next((result for _, result in results("secvit bench-gpu") if not result["tiny"]), None)
    return gpu_report.goals(found) + (f"\n{gpu_report.report(found)}" if found else "")


def trainings() -> str:
    """A row for every recipe that was trained: the mean over its seeds and how far they lie apart."""
    rows = [
        "| recipe | data | test top-1 | val top-1 | most frequent class (test) | seeds | minutes each "
        "| hardware | date |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for _, result in results("secvit train classification"):
        runs = result["runs"]
        tests, vals = ([100 * run[split]["top1"] for run in runs] for split in ("test", "val"))
        rows.append(
            f"| `{result['name']}` | {result['data']} | {_spread(tests)} | {_spread(vals)} "
            f"| {100 * runs[0]['test']['majority_floor']:.2f} % {_ran(result)}"
        )
    return _table(rows)


def pretrainings() -> str:
    """A row for every SimMIM run: L1 on hidden pixels beside that of each image's mean visible colour."""
    rows = [
        "| recipe | data | val L1 | of the mean visible colour | steps | minutes | date |",
        "|---|---|---|---|---|---|---|",
    ]
    for _, result in results("secvit train simmim"):
        for run in result["runs"]:
            loss, baseline = run["val"]["loss"], run["val"]["mean_baseline"]
            rows.append(
                f"| `{result['name']}` | {result['data']} | {loss:.4f} | {baseline:.4f} | {run['steps']} "
                f"| {run['seconds'] / 60:.0f} | {run['date']} |"
            )
    return _table(rows)


def detections() -> str:
    """A row for every detector that was trained: COCO's AP on val, the mean over its seeds and their range."""
    columns = ("mask_AP", "mask_AP50", "box_AP", "box_AP50")
    rows = [
        "| recipe | backbone | mask AP | mask AP50 | box AP | box AP50 | seeds | minutes each | hardware | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for _, result in results("secvit train detection"):
        runs = result["runs"]
        cells = [
            _spread([100 * run["val"][name] for run in runs]) if name in runs[0]["val"] else "" for name in columns
        ]
        rows.append(
            f"| `{result['name']}` | `{result['backbone']}`, {result['note']} | {' | '.join(cells)} {_ran(result)}"
        )
    return _table(rows)


def segmentations() -> str:
    """A row for every segmentation run: the mean over its seeds and how far they lie apart."""
    rows = [
        "| recipe | backbone | data | test mIoU | val mIoU | test pixel accuracy | seeds | minutes each "
        "| hardware | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for _, result in results("secvit train segmentation"):
        runs = result["runs"]
        cells = [
            _spread([100 * run[split][score] for run in runs]) if all(split in run for run in runs) else "none"
            for split, score in (("test", "miou"), ("val", "miou"), ("test", "pixel_accuracy"))
        ]
        rows.append(
            f"| `{result['name']}` | {result['recipe']['model']['backbone']} | {result['data']} | {' | '.join(cells)} "
            + _ran(result)
        )
    return _table(rows)


def segmented_classes() -> str:
    """IoU of each class on the test images of a data set, a column for each run."""
    by_data: dict[str, list[dict[str, Any]]] = {}
    for _, result in results("secvit train segmentation"):
        if all("test" in run for run in result["runs"]):
            by_data.setdefault(result["data"], []).append(result)
    texts = []
    for data, found in by_data.items():
        names = [f"`{result['name'].removeprefix(data + '_')}`" for result in found]
        rows = [f"| {data}, test IoU | {' | '.join(names)} |", "|---|" + "---|" * len(found)]
        for label in found[0]["runs"][0]["test"]["per_class"]:
            scores = [[run["test"]["per_class"][label] for run in result["runs"]] for result in found]
            rows.append(f"| {label} | {' | '.join(_spread([100 * iou for iou in runs]) for runs in scores)} |")
        texts.append(_table(rows))
    return "\n".join(texts) or "No result yet.\n"


def detector_sizes() -> str:
    """Parameters and work of each row of tables 4 and 5, the paper's and ours in both ways of counting."""
    rows = [
        "| detector | backbone | parameters (paper) | MACs of modules (paper) | with attention's products |",
        "|---|---|---|---|---|",
    ]
    for (detector, backbone), (parameters, work) in PRINTED.items():
        with torch.device("meta"):
            model = getattr(detection, detector)(backbone, 80)
        macs = detector_macs(model)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        rows.append(
            f"| `{detector}` | `{backbone}` | {millions:.1f} M ({parameters}) "
            f"| {macs.without_attention / 1e9:.1f} G ({work}) | {macs.total / 1e9:.1f} G |"
        )
    return "\n".join(rows) + "\n"


def patchings() -> str:
    """Test accuracy of a trained ViT with clusters put into its attention: at once, and after further training."""
    lines = []
    for _, result in results("secvit patch accuracy"):
        rows = result["rows"]
        seeds = len({row["seed"] for row in rows})
        lines += [
            f"{result['data']}, {result['images']:,} test images, {seeds} seeds, {result['tokens']} tokens, "
            f"{result['base_steps']:,} steps of training, {result['steps']} more where it says so; "
            f"{result['hardware']}, {result['date']}.",
            "",
            "| attention | clusters | patched, not trained | patched, trained a tenth more |",
            "|---|---|---|---|",
        ]
        for partition, clusters in dict.fromkeys((row["partition"], row["clusters"]) for row in rows):
            cells = []
            for tuned in (False, True):
                same = [
                    100 * row["top1"]
                    for row in rows
                    if (row["partition"], row["clusters"], row["tuned"]) == (partition, clusters, tuned)
                ]
                cells.append(_spread(same) if same else "not run")
            name = "full, as trained" if partition == "none" else partition
            lines.append(f"| {name} | {clusters} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n" if lines else "No result yet.\n"


def patch_reports() -> str:
    """What `secvit patch-report` measured."""
    texts = [
        patch_markdown(PatchReport.read(result)).replace("\n### ", "\n#### ").replace("## ", "### ", 1)
        for _, result in results("secvit patch-report")
    ]
    return "\n".join(texts) or "No result yet.\n"


def fidelities() -> str:
    """What is left of a trained network's features when its attention sees less."""
    return "\n".join(trained_tables.fidelity(result) for _, result in results("fidelity")) or "No result yet.\n"


def probings() -> str:
    """What these features are still good for."""
    return "\n".join(trained_tables.probes(result) for _, result in results("probes")) or "No result yet.\n"


def connectors() -> str:
    """What a small language model answers right with each connector: the mean over seeds and their range."""
    lines = []
    for _, result in results("connectors by task"):
        kinds, runs = result["kinds"], result["runs"]
        train, test = (f"{count:,}" for count in result["images"])
        floors = [f"{100 * result['majority'][kind]:.1f}" for kind in kinds]
        names = dict.fromkeys(run["connector"] for run in runs)
        seen = {name: [run for run in runs if run["connector"] == name] for name in names}
        lines += [
            f"### {result['task']}: {result['length']} tokens to {result['num_tokens']}",
            "",
            f"{result['data']}, {train} training and {test} test images, {result['recipe']['steps']:,} steps of "
            f"{result['recipe']['batch']}; {result['hardware']}, {result['date']}.",
            "",
            f"| connector | tokens | {' | '.join(kinds)} | {kinds[0]} after {result['equal_seconds']:.0f} s "
            "| seconds | seeds |",
            "|---|---|---|" + "---|" * len(kinds) + "---|---|",
            f"| most frequent answer | | {' | '.join(floors)} | | | |",
        ]
        for name, same in seen.items():
            cells = [_range([100 * run["test"][kind] for run in same]) for kind in kinds]
            early = _range([100 * run["equal_time"][kinds[0]] for run in same])
            seconds = sum(run["seconds"] for run in same) / len(same)
            lines.append(
                f"| {name} | {same[0]['tokens']} | {' | '.join(cells)} | {early} | {seconds:.0f} | {len(same)} |"
            )
        lines.append("")
    return "\n".join(lines) or "No result yet.\n"


def connector_costs() -> str:
    """What `secvit bench connector` worked out and timed."""
    texts = [
        connector_markdown(ConnectorReport.read(result)).replace("\n### ", "\n#### ").replace("## ", "### ", 1)
        for _, result in results("secvit bench connector")
    ]
    return "\n".join(texts) or "No result yet.\n"


def connector_stabilities() -> str:
    """How far connectors' outputs move with their inputs, and which tokens stay together; per cent."""
    lines = []
    for _, result in results("connector stability")[:1]:
        rows, recipe = result["rows"], result["recipe"]
        lines = [
            "| connector, at its start | ±1 grey level of noise: tokens | outputs | pairs kept "
            "| tower in bfloat16: tokens | outputs | pairs kept |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in dict.fromkeys(row["connector"] for row in rows):
            cells = []
            for case in ("noise", "bfloat16"):
                same = [row for row in rows if (row["connector"], row["case"]) == (name, case)]
                for score in ("inputs", "outputs", "together"):
                    values = [100 * row[score] for row in same]
                    mean, spread = sum(values) / len(values), max(values) - min(values)
                    cells.append(f"{mean:.1f} %" + (f" (± {spread / 2:.1f})" if spread >= 0.1 else ""))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += [
            "",
            f"{len(recipe['photos'])} photographs of {recipe['size']} px on `{result['tower']}`, 576 tokens to "
            f"{recipe['num_tokens']}, {len(recipe['seeds'])} seeds of noise and of random groups (half their range in "
            f"brackets); {result['hardware']}, torch {result['versions']['torch']}, {result['date']}.",
        ]
    return "\n".join(lines) + "\n" if lines else "No result yet.\n"


def connector_fidelities() -> str:
    """Share of the tokens' variance that each connector's outputs keep: the mean over photos, and the worst photo."""
    lines = []
    for _, result in results("connector fidelity"):
        rows, recipe = result["rows"], result["recipe"]
        counts = list(dict.fromkeys(row["tokens"] for row in rows))
        heads = " | ".join(f"{count} tokens: mean | worst photo" for count in counts)
        lines += [
            f"| connector, not trained | {heads} | x, y explained by the index, {counts[-1]} tokens |",
            "|---|" + "---|---|" * len(counts) + "---|",
        ]
        for name in dict.fromkeys(row["connector"] for row in rows):
            cells = []
            for row in rows:
                if row["connector"] == name:
                    kept, worst = row["kept"], min(row["kept"])
                    cells += [f"{sum(kept) / len(kept):.2f}", f"{worst:.2f}, {recipe['photos'][kept.index(worst)]}"]
                    place = ", ".join(f"{share:.2f}" for share in row["place"])
            lines.append(f"| {name} | {' | '.join(cells)} | {place} |")
        lines += [
            "",
            f"{recipe['network']}, {recipe['size']} px, {recipe['length']} tokens of its last layer, "
            f"{len(recipe['photos'])} photos; {made_with(result)}",
            "",
        ]
    return "\n".join(lines).rstrip("\n") + "\n" if lines else "No result yet.\n"


def _range(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.1f}" + (f" ({min(values):.1f} .. {max(values):.1f})" if len(values) > 1 else "")


PARTITIONS = {
    "sec": "SEC",
    "sec of unturned keys": "SEC before rotary",
    "random": "random",
    "random_projection": "projection",
    "window": "window",
    "kmeans": "k-means",
    "kmeans of unturned keys": "k-means before rotary",
}


def cluster_purities() -> str:
    """Share of pixels that are of their cluster's most frequent class, by data set and stage, means over heads."""
    lines = []
    for _, result in results("secvit clusters")[:1]:
        rows, trained = result["rows"], result["rows"][0]["weights"]
        lines = [
            f"{trained}, photos of {result['size']} px, {rows[0]['images']} of each data set; per cent, means over "
            f"heads; {result['hardware']}, {result['date']}.",
            "",
            f"| data | clusters | stage | one cluster | {' | '.join(PARTITIONS.values())} | SEC, untrained "
            "| SEC's lead over random | over windows |",
            "|---|---|---|---|" + "---|" * (len(PARTITIONS) + 3),
        ]
        for data, clusters, stage in dict.fromkeys((row["data"], row["clusters"], row["stage"]) for row in rows):
            same = [row for row in rows if (row["data"], row["clusters"], row["stage"]) == (data, clusters, stage)]
            own = [row for row in same if row["weights"] == trained]
            cells = [_head_mean(own, partition, "purity") for partition in PARTITIONS]
            cells.append(_head_mean([row for row in same if row["weights"] != trained], "sec", "purity"))
            leads = [
                f"{_head_mean(own, rival, 'lead'):+.1f} ± {_head_mean(own, rival, 'lead_error'):.1f}"
                for rival in ("random", "window")
            ]
            values = " | ".join(f"{cell:.1f}" for cell in [_head_mean(own, "sec", "floor"), *cells])
            lines.append(f"| {data} | {clusters} | {stage + 1} | {values} | {' | '.join(leads)} |")
    return "\n".join(lines) + "\n" if lines else "No result yet.\n"


def cluster_stabilities() -> str:
    """Compactness and stability of partitions by stage, means over heads and data sets."""
    scores = ("compactness", "noise", "flip", "bfloat16")
    lines = []
    for _, result in results("secvit clusters")[:1]:
        rows = [row for row in result["rows"] if "noise" in row]
        lines = [f"| clusters | partition | {' | '.join(scores)} |", "|---|---|" + "---|" * len(scores)]
        for clusters, partition in dict.fromkeys((row["clusters"], row["partition"]) for row in rows):
            same = [row for row in rows if row["clusters"] == clusters]
            stages = sorted({row["stage"] for row in same})
            cells = [
                ", ".join(f"{_head_mean([r for r in same if r['stage'] == s], partition, score):.0f}" for s in stages)
                for score in scores
            ]
            lines.append(f"| {clusters} | {PARTITIONS[partition]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if lines else "No result yet.\n"


def _head_mean(rows: list[dict[str, Any]], partition: str, score: str) -> float:
    """Per cent, the mean over heads; and over data sets."""
    values = [100 * row[score] for row in rows if (row["partition"], row["head"]) == (partition, "mean")]
    return sum(values) / len(values)


def _table(rows: list[str]) -> str:
    return "\n".join(rows) + "\n" if len(rows) > 2 else "No result yet.\n"


def _ran(result: dict[str, Any]) -> str:
    """The cells that end a row: seeds, minutes each, hardware, date."""
    runs = result["runs"]
    minutes = sum(run["seconds"] for run in runs) / 60 / len(runs)
    return f"| {len(runs)} | {minutes:.0f} | {result['hardware']} | {result['date']} |"


def _spread(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.2f} %" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


SECTIONS = {
    "speeds": speeds,
    "goals": goals,
    "on_a_gpu": on_a_gpu,
    "trainings": trainings,
    "pretrainings": pretrainings,
    "detections": detections,
    "detector_sizes": detector_sizes,
    "segmentations": segmentations,
    "segmented_classes": segmented_classes,
    "patchings": patchings,
    "patch_reports": patch_reports,
    "fidelities": fidelities,
    "probings": probings,
    "cluster_purities": cluster_purities,
    "cluster_stabilities": cluster_stabilities,
    "connectors": connectors,
    "connector_costs": connector_costs,
    "connector_stabilities": connector_stabilities,
    "connector_fidelities": connector_fidelities,
}


def with_tables(page: str, sections: Iterable[str] = SECTIONS) -> str:
    """The page with each of its marked sections, or some of them, written anew."""
    for name in sections:
        write = SECTIONS[name]
        start, end = f"<!-- {name}: written by benchmarks/tables.py -->", f"<!-- end of {name} -->"
        if start in page:
            before, rest = page.split(start)
            page = f"{before}{start}\n{write()}{end}{rest.split(end)[1]}"
    return page


if __name__ == "__main__":
    for name, result in results("secvit bench"):
        draw_speeds(BenchResult.read(result), HERE / "results" / f"{name.removesuffix('.json')}.png")
    for path in PAGES:
        path.write_text(with_tables(path.read_text()))
