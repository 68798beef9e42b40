"""Which recipe or command fills which cell of the paper's tables, and what it needs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from secvit import paper


@dataclass(frozen=True)
class Cell:
    """A cell of the paper and what fills it.

    status: what is said as long as there is no number of ours.  how: the command.  recipe, metric: whose result and
    which figure of it the cell shows; count: "parameters" or "work" instead.
    """

    row: paper.Row
    column: str
    status: str
    how: str
    recipe: str = ""
    metric: str = ""
    count: str = ""


# rows of ours, and of what the paper trains beside, by the names that recipes have for them
NETWORKS = {
    "DeiT-S": "deit_small",
    "DeiT-B": "deit_base",
    "Swin-T": "swin_tiny",
    "Swin-S": "swin_small",
    "Swin-B": "swin_base",
    "SEC-DeiT-S": "sec_deit_small",
    "SEC-DeiT-B": "sec_deit_base",
    "SEC-Swin-T": "sec_swin_tiny",
    "SEC-Swin-S": "sec_swin_small",
    "SEC-Swin-B": "sec_swin_base",
    "EViT-DeiT-S": "evit_deit_small",
    "SECViT-T": "secvit_tiny",
    "SECViT-S": "secvit_small",
    "SECViT-B": "secvit_base",
    "SECViT-L": "secvit_large",
    "SECViT-XL": "secvit_xlarge",
}
CONNECTORS = {"MLP": "mlp", "MLP+SEC": "sec", "Resampler": "resampler", "MLP+Pool": "pool", "MLP+EViT": "evit"}
BENCHMARKS = {
    "TextVQA": "textvqa",
    "GQA": "gqa",
    "VQAv2": "vqav2 --split test",
    "POPE": "pope",
    "MME": "mme",
    "VisWiz": "vizwiz --split test",
    "SQA img": "scienceqa",
    "MMB": "mmbench",
    "MM-Vet": "mmvet",
}
METRICS = {
    "Acc": "top1",
    "Acc(%)": "top1",
    "Top1-acc (%)": "top1",
    "Top1-Acc(%)": "top1",
    "mIoU": "miou",
    "mIoU (%)": "miou",
    "mIoU_ss (%)": "miou",
    "AP^b": "box_AP",
    "AP50^b": "box_AP50",
    "AP75^b": "box_AP75",
    "AP_S^b": "box_AP_small",
    "AP_M^b": "box_AP_medium",
    "AP_L^b": "box_AP_large",
    "AP^m": "mask_AP",
    "AP50^m": "mask_AP50",
    "AP75^m": "mask_AP75",
}
HEADS = {"Mask R-CNN": "mask_rcnn", "RetinaNet": "retinanet", "Semantic FPN": "semantic_fpn", "UperNet": "upernet"}
NEEDS = {
    "classification": "not run: needs ImageNet-1k and GPUs",
    "detection": "not run: needs COCO and GPUs",
    "segmentation": "not run: needs ADE20K and GPUs",
}
OF_IMAGES = "small scale only: ratios on a CPU, [benchmarks/README.md](../benchmarks/README.md); needs an A100"
OF_LLAVA = (
    "small scale only: an eighth of the 7B on a CPU, [benchmarks/README.md](../benchmarks/README.md); needs an A100"
)
OF_TRAINING = "not run: needs Vicuna-7B, LLaVA's data, GPUs; the seconds of a run of stage 2"
VLM = {"Table 7", "Table 8", "Table 9", "Table 11", "Table S3"}

# (table, heading, row, column): why the printed number cannot stand beside the others
CONTRADICTIONS = {
    ("Table 1", "", "SEC-DeiT-B", "FLOPs (G)"): "DeiT-B without any attention product has more already",
    ("Table S2", "", "SEC-DeiT-B", "FLOPs(G)"): "DeiT-B without any attention product has more already",
    ("Table 5", "Mask R-CNN 3×+MS", "SECViT-B", "Params (M)"): "76 for the same network in Table 4",
    ("Table 8", "7B LLM", "LLaVA-1.5+SEC (ours), Vicuna-7B, MLP+SEC, 257, 336", "VQAv2"): "78.6 in Tables 7 and 11",
    ("Table 10", "", "196", "FLOPs (G)"): "more than its own network has",
    ("Table 10", "", "24", "FLOPs (G)"): "less than its own network has",
    ("Table 10", "", "49", "mIoU"): "47.7 is marked -0.5 against 47.2",
    ("Table 11", "", "256+1", "GQA"): "63.2 is marked +0.3 against 62.0",
    ("Table S1", "", "SECViT-XL", "Params(M)"): "the row's own blocks and channels give more",
    ("Table S1", "", "SECViT-XL", "FLOPs(G)"): "the row's own blocks and channels give less",
    ("Table S3", "", "Sequential, 288+1", "GQA"): "57.1 is marked -6.2 against 63.5",
    ("Table S3", "", "Sequential, 144+1", "MM-Vet"): "22.3 is marked -9.6 against 31.7",
}


def fill(row: paper.Row, column: str) -> Cell | None:
    """What fills a cell of the paper; None in a row that the paper quotes from other work."""
    if row.table in VLM:
        return _of_llava(row, column)
    network = _network(row)
    if network is None:
        return None
    if row.cells[column] in paper.NOTHING and row.table != "Table 2":
        return Cell(row, column, "nothing: the paper has no number", "none")
    if row.table == "Table S1" and not column.startswith(("Params", "FLOPs")):
        return Cell(row, column, "the same", f"`secvit.models.secvit.{network}`")
    if column in ("Method", "Pretrain epoch"):
        return _of_table_2(row, column)
    if column.startswith("Throughput"):
        return Cell(row, column, OF_IMAGES, "`make bench-gpu`")
    recipe = _recipe(row, column, network)
    kind = recipe.partition(".")[0]
    if "Params" in column or "FLOPs" in column:
        count = "parameters" if "Params" in column else "work"
        return Cell(row, column, "not counted", "`python benchmarks/reproduction.py --count`", recipe, count=count)
    metric = METRICS[_bare(column)]
    return Cell(row, column, NEEDS[kind], f"`secvit train {recipe}`", recipe, metric)


def recipes_counted() -> set[str]:
    """The recipes whose networks are counted."""
    every = (fill(row, column) for table in paper.tables().values() for row in table.rows for column in row.cells)
    return {cell.recipe for cell in every if cell and cell.count}


def every_cell() -> Iterator[Cell]:
    """Cells of rows that are ours to fill."""
    for table in paper.tables().values():
        for row in table.rows:
            yield from filter(None, (fill(row, column) for column in row.cells))


def _network(row: paper.Row) -> str | None:
    if row.table == "Table 10":
        return "secvit_tiny"
    if row.table in ("Table 1", "Table 2", "Table S1", "Table S2"):
        return NETWORKS.get(row.label[0].partition(" (")[0])
    return NETWORKS.get(row.label[0]) if row.label[0].startswith("SECViT") else None


def _bare(column: str) -> str:
    for head in HEADS:
        column = column.removeprefix(f"{head} ")
    return column


def _recipe(row: paper.Row, column: str, network: str) -> str:
    """The recipe that trains what a cell is about."""
    metric, bare = METRICS.get(_bare(column), ""), _bare(column)
    if row.table == "Table 10":
        return _of_table_10(row.label[0], metric)
    if row.table == "Table 4":
        head = next(value for key, value in HEADS.items() if column.startswith(key))
        return f"detection.{head}_1x_{network}"
    if row.table == "Table 5":
        head = "cascade_mask_rcnn" if row.heading.startswith("Cascade") else "mask_rcnn"
        return f"detection.{head}_3x_{network}"
    if row.table == "Table 6":
        head = next(value for key, value in HEADS.items() if column.startswith(key))
        return f"segmentation.ade20k_{head}_{network}"
    if row.table == "Table 1" and bare.startswith("AP"):
        return f"detection.mask_rcnn_1x_{network}"
    if row.table == "Table 1" and metric == "miou":
        return f"segmentation.ade20k_upernet_{network}"
    simmim = "_simmim" if row.cells.get("Method") == "SimMIM" and metric else ""
    return f"classification.imagenet_{network}{simmim}"


def _of_table_10(tokens: str, metric: str) -> str:
    if tokens == "98":
        task = {"miou": "segmentation.ade20k_semantic_fpn", "": "classification.imagenet"}
        head = "detection.mask_rcnn_1x" if "AP" in metric else task.get(metric, "classification.imagenet")
        return f"{head}_secvit_tiny"
    head = "detection.table10_mask_rcnn" if "AP" in metric else "classification.table10"
    return f"{'segmentation.table10_semantic_fpn' if metric == 'miou' else head}_{tokens}_tokens"


def _of_table_2(row: paper.Row, column: str) -> Cell:
    network = _network(row)
    if row.cells["Method"] == "SimMIM":
        return Cell(row, column, "the same", f"`secvit train simmim.imagenet_{network}`")
    return Cell(row, column, "the same", f"`secvit train classification.imagenet_{network}`")


def _of_llava(row: paper.Row, column: str) -> Cell | None:
    if row.table in ("Table 7", "Table 8", "Table 9"):
        if not row.label[0].startswith("LLaVA") or "Adapter" in row.name:
            return None
        connector = CONNECTORS[row.label[1 if row.table == "Table 7" else 2]]
        count = row.label[2 if row.table == "Table 7" else 3]
    else:
        count = row.label[-1]
        connector = "mlp" if count.startswith("576") else "sec"
    tokens = int(count.partition("+")[0]) if "+" in count else int(count) - 1
    size = "13B" if "13B" in row.name else "7B"
    if column in ("Time", "Speed") and row.table in ("Table 11", "Table S3"):
        return Cell(row, column, OF_TRAINING, f"`secvit compare {row.table.replace(' ', '').lower()}`")
    if column in ("Time", "Speed") or column.startswith("Speed"):
        return Cell(row, column, OF_LLAVA, "`secvit bench connector`")
    sequential = ", arrangement sequential" if row.label[0] == "Sequential" else ""
    trained = f"{size}, {connector}, {tokens} tokens{sequential}"
    benchmark = BENCHMARKS[re.sub(r"\s+", " ", column)]
    server = {"vqav2 --split test": ", VQA's server", "vizwiz --split test": ", VizWiz's server", "mmvet": ", a judge"}
    needs = f"not run: needs Vicuna-{size}, LLaVA's data, GPUs{server.get(benchmark, '')}"
    if row.cells[column] in paper.NOTHING:
        return Cell(row, column, "nothing: the paper has no number", "none")
    return Cell(row, column, needs, f"{trained}: `secvit evaluate RUN2 --benchmark {benchmark}`")
