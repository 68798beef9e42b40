"""The `secvit` command.  Each subcommand reads its words and calls one public function.

secvit train classification.digits --output runs/digits
secvit evaluate --model secvit_nano --checkpoint runs/digits/model.safetensors --data digits
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_type_hints

from secvit import recipes
from secvit.extras import needs
from secvit.fields import Entry, read_yaml, shown

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Command = Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 0, or 2 for input that cannot be used, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"secvit {version('secvit')}")
        return 0
    if words[0] not in COMMANDS:
        print(f"secvit: no command {words[0]!r}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    level = logging.WARNING if _silent() else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for talkative in ("timm", "faster_coco_eval", "httpx", "matplotlib"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        return COMMANDS[words[0]](words[1:])
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if debug:
            raise
        print(f"secvit {words[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"secvit {words[0]}: interrupted", file=sys.stderr)
        return 130


# -- train -------------------------------------------------------------------------------------

# what --data is where digits are of no use
FOLDERS = {
    "detection": "a folder in COCO's, YOLO's or Pascal VOC's format (docs/detection.md)",
    "segmentation": "a folder of pictures and masks (docs/segmentation.md)",
    "vlm": "a JSON of LLaVA's conversations, or a folder with train.json (docs/vlm_training.md)",
}


# exit codes of a run that stopped early, so that `train && evaluate` does not go on; 75 is "try again" in sysexits.h
STOPPED = {"interrupted": 130, "terminated": 143, "time limit": 75}


def train(words: Sequence[str]) -> int:
    """Train by a recipe."""
    if not words or words[0] in ("-h", "--help"):
        print(_train_help())
        return 0
    name, words = words[0], list(words[1:])
    make = recipes.find(name)
    recipe, any_data = make(), name.endswith(".digits")
    part = name.partition(".")[0]
    if "--tiny" in words:
        words.remove("--tiny")
        any_data = part not in FOLDERS
        recipe = importlib.import_module(f"secvit.{name.rpartition('.')[0]}").tiny(recipe)
    parser = _parser(
        f"secvit train {name}",
        f"{_doc(make)}\n\nEvery number of the recipe can be changed:",
        f"secvit train {name} [--data DIR] [--output DIR] [--optim.lr 1e-3 ...]",
    )
    parser.add_argument("--config", action="config", help="YAML file with changes of the recipe")
    about = FOLDERS.get(part, 'images: a path, wds/..., hfds/... or "digits" (docs/data.md)')
    parser.add_argument("--data", type=str | None, default="digits" if any_data else None, help=about)
    parser.add_argument("--output", type=str, default=f"runs/{name}", help="folder of the run")
    parser.add_argument("--resume", type=str, default="auto", help="auto, never or a checkpoint")
    for entry, kind in get_type_hints(type(recipe)).items():
        parser.add_argument(f"--{entry}", type=kind, default=getattr(recipe, entry))
        _explain(parser, entry, kind if is_dataclass(kind) else type(recipe))
    # before jsonargparse reads them, without a limit
    files = {file: _config(file) for _, file in _given(words, "--config")}
    parser.files = tuple(files)
    try:
        parsed = parser.parse_args(words)
    except (OverflowError, RecursionError) as error:  # a number of hundreds of digits, brackets in brackets
        given = " ".join(word if len(word) <= 60 else f"{word[:60]}..." for word in words)
        raise ValueError(f"{given}: {error}") from None
    for entry, kind in get_type_hints(type(recipe)).items():
        _check_values(parsed[entry], kind, entry, files)
    if parsed.loop.epochs is not None and parsed.loop.steps is not None:
        parsed.loop[_earlier_length(words, files, recipe)] = None
    try:
        found = parser.instantiate(parsed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}{_with(files)}") from None
    if not found.data:
        digits = "" if part in FOLDERS else ", or --data digits for a try without a download"
        raise ValueError(f"{name} needs images: give --data DIR{digits}")
    changed = type(recipe)(**{entry.name: found[entry.name] for entry in fields(recipe)})
    run = importlib.import_module(f"secvit.{part}").train
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun then shows the error of the process that failed first
        from torch.distributed.elastic.multiprocessing.errors import record

        run = record(run)
    from secvit.vis import draw_curves  # before the work: it may be missing

    output = Path(found.output)
    try:
        result = run(changed, found.data, output, found.resume)
    except KeyboardInterrupt:
        from secvit.train import latest

        last = latest(output)
        saved = f"the same command goes on from {last.name}" if last else "nothing was saved yet"
        print(f"interrupted; {saved}", file=sys.stderr)
        return STOPPED["interrupted"]
    if _silent():
        return 0  # the first process says how it ended; torchrun would end it at once if another one did
    code = STOPPED.get(result["stopped"], STOPPED["time limit"]) if result["stopped"] else 0
    try:
        draw_curves(output / "log.csv", output / "curves.png")
    except (ValueError, OSError) as error:
        if not code:
            print(f"no curves were drawn: {error}", file=sys.stderr)
    if code:
        print(f"{result['stopped']} at step {result['steps']}, which is saved; the same command goes on from there")
    else:
        print(f"{result['summary']} in {result['seconds']:.0f} s; see {output}")
    return code


def _given(words: Sequence[str], *options: str) -> Iterator[tuple[str, str]]:
    """Options among the words with their values, "--option value" and "--option=value" alike."""
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in options and (equals or at + 1 < len(words)):
            yield option, value if equals else words[at + 1]


def _with(files: Iterable[str]) -> str:
    """What an error adds if options came from files."""
    return f" (with --config {', '.join(files)})" if files else ""


def _check_values(value: Any, kind: Any, name: str, files: Iterable[str]) -> None:
    """A ValueError for what jsonargparse leaves to the recipe: null, and numbers that are not finite."""
    if is_dataclass(kind):
        if not hasattr(value, "items"):
            raise ValueError(f"{name} is {shown(value)}, expected entries like {fields(kind)[0].name}{_with(files)}")
        for key, inner in get_type_hints(kind).items():
            _check_values(value[key], inner, f"{name}.{key}", files)
    elif value is None and type(None) not in get_args(kind):
        raise ValueError(f"{name} is null, expected a value{_with(files)}")
    else:
        parts = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise ValueError(f"{name} is {shown(value)}, expected finite numbers{_with(files)}")


def _config(file: str) -> dict[str, Any]:
    """The changes of a recipe in a YAML file, {} if it is empty."""
    found = read_yaml(file)
    return {} if found is None else dict(Entry(file, found).fields)


def _earlier_length(words: Sequence[str], files: Mapping[str, Mapping[str, Any]], recipe: Any) -> str:
    """Of `epochs` and `steps`, both set, the one that the other overrides: the recipe's, or the one given first."""
    given: list[str] = []
    for option, value in _given(words, "--loop.epochs", "--loop.steps", "--config"):
        if option == "--config":
            loop = files[value].get("loop")
            entries = {f"loop.{key}": one for key, one in loop.items()} if isinstance(loop, dict) else {}
            entries |= files[value]
        else:
            entries = {option[2:]: None if value == "null" else value}
        given += [name for name in ("epochs", "steps") if entries.get(f"loop.{name}") is not None]
    last = given[-1] if given else "steps" if recipe.loop.steps is not None else "epochs"
    return "epochs" if last == "steps" else "steps"


def _train_help() -> str:
    lines = [f"  {name}\n      {_doc(make).splitlines()[0]}" for name, make in recipes.every().items()]
    return TRAIN_HELP.format(recipes="\n".join(lines))


TRAIN_HELP = """\
usage: secvit train RECIPE [--data DIR] [--output DIR] [changes]

Recipes:
{recipes}

Examples:
  secvit train classification.digits --output runs/digits     1,797 real digits, no download
  secvit train classification.digits --tiny                   four steps, to see that it runs
  secvit train classification.finetune --data DIR             DIR/CLASS/*.jpg, DIR/train/CLASS/*.jpg and
                                                              DIR/val/..., tables, shards: docs/data.md
  secvit train RECIPE --optim.lr 1e-3 --loop.epochs 50         change any number of the recipe
  secvit train RECIPE --print_config > my.yaml                 all of them, to edit ...
  secvit train RECIPE --config my.yaml                         ... and to use
  secvit train RECIPE --help                                   what each of them means
  torchrun --nproc-per-node 2 -m secvit.cli train RECIPE       many processes

The same command again goes on from the newest checkpoint in the output folder.
Ctrl-C saves and stops after the current step.  --debug shows tracebacks.
Exit codes: 0 finished, 2 input that cannot be used, 130 stopped by Ctrl-C, 143 by SIGTERM, 75 by the time limit;
after the last three the same command goes on.
"""


# -- evaluate ----------------------------------------------------------------------------------


def evaluate(words: Sequence[str]) -> int:
    """Score a checkpoint on a split."""
    parser = _parser(
        "secvit evaluate",
        "Accuracy of saved weights on a split: top-1, top-5 and over classes, box and mask AP, or mIoU.\n\n"
        "secvit evaluate --model secvit_nano.cifar10 --data DIR           weights that come along\n"
        "secvit evaluate --model secvit_nano --checkpoint RUN --data DIR   a classifier you trained\n"
        "secvit evaluate --checkpoint RUN --data DIR --max_dets 300        a detector, on a COCO-format folder\n"
        "secvit evaluate --checkpoint RUN --data DIR --split test          a segmentation run, on pictures and masks;\n"
        "                                             --scales 0.75 1 1.25 --flip --confusion confusion.png\n"
        "secvit evaluate --checkpoint RUN --benchmark pope --data DIR      a LLaVA: textvqa, gqa, vqav2, vizwiz, ...\n"
        "secvit evaluate --answers FILE.jsonl --benchmark pope --data DIR  of answers (docs/vlm_evaluation.md)",
    )
    parser.add_argument("--model", type=str | None, help="name of the network; runs with a head know it")
    parser.add_argument("--checkpoint", type=str | None, help="weights or the folder of a run; else those that ship")
    parser.add_argument("--data", type=str, required=True, help='images: a path, wds/..., hfds/... or "digits"')
    parser.add_argument("--split", type=str, default="val", help="train, val or test")
    parser.add_argument("--image_size", type=int | None, help="px of the (short) side, if not as in the run")
    parser.add_argument("--max_dets", type=int | None, help="detections of an image that count; else as in the run")
    _add_look(parser)
    parser.add_argument("--confusion", type=str | None, help="also draw which classes pixels are taken for")
    parser.add_argument("--benchmark", type=str | None, help="questions for a LLaVA; --data is the benchmark's folder")
    parser.add_argument("--answers", type=str | None, help="JSONL file of the answers; else in the checkpoint's folder")
    parser.add_argument("--template", type=Literal["v1"] | None, help="v1: LLaVA-1.5's own prompt and square pictures")
    parser.add_argument("--batch_size", type=int | None, help="images at a time (256 to classify, 1 to detect)")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; the GPU if there is one")
    parser.add_argument("--json", type=str | None, help="also write the numbers to this file")
    found = parser.parse_args(list(words))
    from secvit.models.saved import saved_config

    if found.confusion:
        from secvit.vis.picture import check_output

        check_output(found.confusion)
    scores: dict[str, Any]
    known = (saved_config(found.checkpoint).get("model") or {}) if found.checkpoint else {}
    if found.benchmark:
        from secvit.vlm.evaluate import evaluate_checkpoint

        options = {k: found[k] for k in ("answers", "template", "device")}
        scores = evaluate_checkpoint(
            found.checkpoint, found.benchmark, found.data, found.split, batch_size=found.batch_size or 1, **options
        )
    elif "detector" in known:
        from secvit import detection

        scores = detection.evaluate_checkpoint(
            found.checkpoint,
            found.data,
            found.split,
            max_dets=found.max_dets,
            batch_size=found.batch_size or 1,
            min_size=found.image_size,
            device=found.device,
        )
    elif "head" in known:
        from secvit import segmentation

        look = {"short_side": found.image_size, **_look(found)}
        scores = segmentation.evaluate_checkpoint(found.checkpoint, found.data, found.split, found.device, **look)
        if found.confusion:
            from secvit.vis.segmentation import draw_confusion

            draw_confusion(scores["confusion"], list(scores["per_class"]), found.confusion)
    elif found.model:
        from secvit import classification

        scores = classification.evaluate_checkpoint(
            found.model,
            found.checkpoint,
            found.data,
            found.split,
            image_size=found.image_size,
            batch_size=found.batch_size or 256,
            device=found.device,
        )
    else:
        raise ValueError(
            "which network?  Give --model, or --checkpoint with a detector's, a segmentation or (with "
            "--benchmark) a LLaVA's run"
        )
    if _silent():
        return 0
    for key, value in scores.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, figure in value.items():
                print(f"  {name:20} " + ("does not occur" if figure is None else f"{figure:.4f}"))
        elif not isinstance(value, list):
            print(f"{key:15} {value:.4f}" if isinstance(value, float) else f"{key:15} {value}")
    if found.json:
        with open(found.json, "w") as file:
            json.dump(scores, file, indent=2)
    return 0


# -- predict -----------------------------------------------------------------------------------


def predict(words: Sequence[str]) -> int:
    """Say what is in pictures."""
    parser = _parser(
        "secvit predict",
        "The most likely classes of one or more pictures.\n\n"
        "secvit predict photo.jpg                                  ten kinds of things (CIFAR-10)\n"
        "secvit predict *.jpg --model secvit_nano.clothing10       ten kinds of clothes\n"
        "secvit predict photo.jpg --checkpoint runs/mine           a network you trained",
    )
    parser.add_argument("photos", type=str, nargs="+", help="the pictures, of any format and size")
    parser.add_argument("--model", type=str, default="secvit_nano.cifar10", help="name of the network")
    parser.add_argument("--checkpoint", type=str | None, help="weights, or the folder of a run")
    parser.add_argument("--top", type=int, default=3, help="classes to name")
    found = parser.parse_args(list(words))
    from secvit.classification import predict as run
    from secvit.images import read_image
    from secvit.models.saved import has_weights, load_model, saved_config

    saved = saved_config(found.checkpoint).get("model") or {} if found.checkpoint else {}
    name = saved.get("name", found.model)
    if not found.checkpoint and not has_weights(name):
        raise ValueError(f"no weights come with {name}; give --checkpoint, or --model secvit_nano.clothing10")
    images, broken = [], []
    for photo in found.photos:
        try:
            images.append((photo, read_image(photo)))
        except ValueError as error:
            broken.append(str(error))
    network = load_model(name, found.checkpoint) if images else None
    for photo, image in images:
        said = run(network, image, found.top)
        print(f"{photo}: " + ", ".join(f"{label} {100 * share:.1f} %" for label, share in said))
    for reason in broken:
        print(f"secvit predict: left out {reason}", file=sys.stderr)
    return 2 if broken else 0


# -- detect ------------------------------------------------------------------------------------


def detect(words: Sequence[str]) -> int:
    """Find objects in pictures, draw them and write them down in COCO's format."""
    parser = _parser(
        "secvit detect",
        "Boxes, masks, names and scores of the objects in one or more pictures, drawn over each picture\n"
        "and in one JSON file in COCO's format, which annotation tools open.\n\n"
        "secvit detect photo.jpg --weights runs/mine                  detections/photo_detections.jpg, and\n"
        "                                                             detections/detections.json\n"
        "secvit detect photos/ more/*.png --weights runs/mine --output found --score 0.3\n"
        "secvit detect photo.jpg --weights runs/mine --min_size 800    small objects in a large picture",
    )
    parser.add_argument("images", type=str, nargs="+", help="pictures of any format and size, or folders of them")
    parser.add_argument("--weights", type=str, required=True, help="the folder of a run of `secvit train detection...`")
    parser.add_argument(
        "--output", type=str, default="detections", help="folder of the pictures; those of the same names are replaced"
    )
    parser.add_argument("--json", type=str | None, help="the JSON file, replaced if it exists, if not in --output")
    parser.add_argument("--score", type=float, default=0.5, help="the least score drawn and written, 0.05 or more")
    parser.add_argument("--batch_size", type=int, default=1, help="pictures at a time")
    parser.add_argument("--min_size", type=int | None, help="short side in px that the detector sees; else the run's")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; the GPU if there is one")
    found = parser.parse_args(list(words))
    from secvit.vis import detect_photos

    options = {k: found[k] for k in ("score", "batch_size", "min_size", "device")}
    coco, skipped = detect_photos(found.images, found.weights, found.output, found.json, **options)
    print(
        f"{len(coco['annotations'])} objects in {len(coco['images'])} pictures; see {found.output} and "
        f"{found.json or Path(found.output) / 'detections.json'}"
    )
    for reason in skipped:
        print(f"secvit detect: left out {reason}", file=sys.stderr)
    return 2 if skipped else 0


# -- segment -----------------------------------------------------------------------------------


def segment(words: Sequence[str]) -> int:
    """Label the pixels of pictures."""
    parser = _parser(
        "secvit segment",
        "The class of each pixel of one or more pictures: an overlay to look at, and an indexed PNG with\n"
        "the numbers of the masks that the run learned from, to work with.\n\n"
        "secvit segment photo.jpg --weights runs/mine               in segments/: photo.png, photo_overlay.jpg\n"
        "secvit segment photos/ more/*.png --weights runs/mine --short_side 0 --window 512     large pictures\n\n"
        "secvit evaluate scores such a run on a split.",
    )
    parser.add_argument("photos", type=str, nargs="+", help="pictures of any format and size, or folders of them")
    parser.add_argument("--weights", type=str, required=True, help="what secvit train segmentation... left")
    parser.add_argument(
        "-o", "--output", type=str, default="segments", help="folder of the results; older ones are replaced"
    )
    parser.add_argument("--short_side", type=int | None, help="px of the short side; 0 leaves the size")
    _add_look(parser)
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; the GPU if there is one")
    found = parser.parse_args(list(words))
    from secvit.vis.segmentation import segment_photos

    look = {"short_side": found.short_side, **_look(found)}
    for result in segment_photos(found.photos, found.weights, found.output, found.device, **look):
        print(result)
    return 0


def _add_look(parser: ArgumentParser) -> None:
    parser.add_argument("--window", type=int | None, help="px of windows to look through; 0 for none")
    parser.add_argument("--overlap", type=float | None, help="part of a window that the next one sees again")
    parser.add_argument("--scales", type=float, nargs="+", help="factors of the size, to be averaged")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")


def _look(found: Any) -> dict[str, Any]:
    """What `_add_look` was told; None where the run decides."""
    scales = tuple(found.scales) if found.scales else None
    return {"window": found.window, "overlap": found.overlap, "scales": scales, "flip": found.flip or None}


# -- ask ---------------------------------------------------------------------------------------


def ask(words: Sequence[str]) -> int:
    """Ask a LLaVA about pictures."""
    parser = _parser(
        "secvit ask",
        "The answer of a vision-language model to a question about one or more pictures.\n\n"
        'secvit ask photo.jpg "How many people are there?" --weights runs/mine',
    )
    parser.add_argument("photos", type=str, nargs="+", help="the pictures, of any format and size")
    parser.add_argument("question", type=str, help="what to ask about them")
    parser.add_argument("--weights", type=str, required=True, help="what secvit train vlm... left, or another LLaVA")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="most tokens of the answer")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; the GPU if there is one")
    found = parser.parse_args(list(words))
    from secvit.images import read_image
    from secvit.vlm import ask as run
    from secvit.vlm import load_trained

    pictures = [read_image(photo) for photo in found.photos]
    print(run(*load_trained(found.weights, found.device), pictures, found.question, found.max_new_tokens))
    return 0


# -- cluster -----------------------------------------------------------------------------------


def cluster(words: Sequence[str]) -> int:
    """Draw what each stage of a network puts together in photos."""
    parser = _parser(
        "secvit cluster",
        "A picture of the clusters that each stage of a network makes of a photo; and what they are worth.\n\n"
        "secvit cluster photo.jpg                                     photo_clusters.png\n"
        "secvit cluster photo.jpg -o clusters.png --gradcam           and what speaks for the likeliest class\n"
        "secvit cluster photos/ more/*.png -o pictures --gif          a folder; animations through all blocks, too\n"
        "secvit cluster photo.jpg --stage 3 --block all --head all --style outlined\n"
        "secvit cluster photo.jpg --compare --num_clusters 8          window, k-means and SEC, sizes and times\n"
        "secvit cluster photos/ --page -o page.png                    one page: clusters and Grad-CAM of all photos\n"
        "secvit cluster photos/ --metrics --masks masks/              do clusters follow objects, and do they stay?\n"
        "secvit cluster photo.jpg --model deit_small_patch16_224 --checkpoint weights.safetensors --cluster_size 49\n\n"
        "Stages, blocks and heads count from 1, as in the pictures; in Python they count from 0.",
    )
    parser.add_argument("photos", type=str, nargs="+", help="images of any format and size, or folders of them")
    parser.add_argument(
        "-o", "--output", type=str | None,
        help="a folder, where no file is replaced (default: this one); for one photo or a page also a file's name",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=str, default="secvit_nano.clothing10",
        help="a secvit_*, sec_deit_* or sec_swin_* model, or a plain ViT of timm's, which is patched",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=str | None, help="weights or a run; else those that ship, or random ones")
    parser.add_argument("--size", type=int | None, help="long side in px that the network sees (default: at most 640)")
    parser.add_argument("--stage", type=int, nargs="+", help="stages to show; else all")
    parser.add_argument("--block", type=int | Literal["all"] | None, help='of each stage; "all", or else the last')
    parser.add_argument("--head", type=int | Literal["all"], default=1, help='number of the head, or "all"')
    parser.add_argument("--num_clusters", type=int | None, help="cut the keys into so many, not as the network does")
    parser.add_argument("--cluster_size", type=int | None, help="or into clusters of so many tokens or fewer")
    parser.add_argument("--partition", type=str | None, help="sec, or a rival: window, raster, random, kmeans, ...")
    parser.add_argument("--style", type=str, default="blended", help="blended, outlined or side_by_side")
    parser.add_argument("--gradcam", action="store_true", help="Grad-CAM of the likeliest class below the clusters")
    parser.add_argument("--gif", action="store_true", help="also PHOTO_clusters.gif, through all blocks")
    parser.add_argument("--compare", action="store_true", help="also PHOTO_partitions.png: window, k-means and SEC")
    parser.add_argument("--page", action="store_true", help="one picture for all photos: clusters and Grad-CAM")
    parser.add_argument("--metrics", action="store_true", help="print compactness, stability and, with masks, purity")
    parser.add_argument("--masks", type=str | None, help="folder of indexed PNGs by the photos' names, or one of them")
    found = parser.parse_args(list(words))
    from secvit.vis import View, cluster_page, cluster_photos
    from secvit.vis.clusters import UNTRAINED
    from secvit.vis.metrics import metrics_table

    where = {name: _from_one(name, found[name]) for name in ("block", "head")}
    stages = None if found.stage is None else [_from_one("stage", stage) for stage in found.stage]
    same = ("model", "checkpoint", "size", "num_clusters", "cluster_size", "partition", "style")
    view = View(stages=stages, **where, **{name: found[name] for name in same})
    extra = {name: found[name] for name in ("gradcam", "gif", "compare", "metrics", "masks")}
    if found.masks and not found.metrics:
        raise ValueError("--masks is for --metrics; give both")
    if found.page and any(extra.values()):
        raise ValueError("--page is one picture by itself; leave out " + ", ".join(f"--{n}" for n in extra if extra[n]))
    if found.page:
        made = cluster_page(found.photos, found.output, view)
    else:
        made = cluster_photos(found.photos, found.output, view, **extra)
    for path in made.written:
        print(f"wrote {path}")
    for path in made.replaced:
        print(f"replaced {path}")
    if made.rows:
        print(metrics_table(made.rows), end="")
    if view.note == UNTRAINED:
        print(UNTRAINED)
    for reason in made.skipped:
        print(f"secvit cluster: left out {reason}", file=sys.stderr)
    return 2 if made.skipped else 0


def _from_one(name: str, number: Any) -> Any:
    """A number that a user counts from 1, counted from 0; "all" and None as they are."""
    if isinstance(number, int) and number < 1:
        raise ValueError(f"--{name} {number}; count from 1, as in the pictures")
    return number - 1 if isinstance(number, int) else number


# -- app -----------------------------------------------------------------------------------------


def app(words: Sequence[str]) -> int:
    """Serve a page to play with: clusters and Grad-CAM of your photos."""
    parser = _parser(
        "secvit app",
        "A page in your browser, offline: drop a photo, choose model, stage and partition, compare two of them.\n\n"
        "secvit app\n"
        "secvit app --checkpoint runs/mine           your own network, first among the models",
    )
    parser.add_argument("--port", type=int | None, help="where it listens; else the first free port from 7860 on")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="this computer alone, or 0.0.0.0 for all of the network"
    )
    parser.add_argument("--checkpoint", type=str | None, help="the folder of a classification run")
    parser.add_argument("--max_upload_mb", type=int, default=20, help="larger files are refused")
    found = parser.parse_args(list(words))
    from secvit.app import serve

    serve(found.host, found.port, found.checkpoint, found.max_upload_mb)
    return 0


# -- convert -----------------------------------------------------------------------------------


def convert(words: Sequence[str]) -> int:
    """Turn the authors' checkpoints into ours, or back."""
    parser = _parser(
        "secvit convert",
        "Write a checkpoint of the authors' code so that timm loads it here.\n\n"
        "secvit convert AUTHORS.pth OUT.safetensors --model secvit_large_release\n"
        '  then: timm.create_model("secvit_large_release", checkpoint_path="OUT.safetensors")',
    )
    parser.add_argument("source", type=str, help="the checkpoint to read, .pth or .safetensors")
    parser.add_argument("target", type=str, help="the file to write, .safetensors or .pth")
    parser.add_argument("--model", type=str, required=True, help="name of the network")
    parser.add_argument("--reverse", action="store_true", help="from ours to the authors' layout")
    found = parser.parse_args(list(words))
    from secvit.models.convert import convert as run

    count = run(found.source, found.target, found.model, found.reverse)
    print(f"wrote {count} tensors to {found.target}")
    return 0


# -- bench ---------------------------------------------------------------------------------------


def bench(words: Sequence[str]) -> int:
    """Time our networks beside timm's and the paper's equations written out; `bench connector`: image tokens."""
    if words[:1] == ["connector"]:
        from secvit.measure.connectors import main as run_connector

        return run_connector(list(words[1:]))
    from secvit.measure.bench import main as run

    return run(list(words))


# -- patch-report --------------------------------------------------------------------------------


def patch_report(words: Sequence[str]) -> int:
    """Say what clusters in the attention of a ViT cost and save, by image size."""
    parser = _parser(
        "secvit patch-report",
        "Work, speed, peak memory and features of a vision transformer with its attention in clusters\n"
        "(secvit.patch) beside the original, and the size from which on it is faster on this machine.\n\n"
        "secvit patch-report vit_base_patch16_224 --size 224 512 1024          random weights: speed and memory\n"
        "secvit patch-report deit3_small_patch16_384 --pretrained --images *.jpg   and what becomes of features\n"
        "secvit patch-report deit_small_patch16_224 --num_clusters 4 --layers 6 7 8 9 10 11\n"
        "secvit patch-report FOLDER --size 256 512 --training --json out.json --plot out.png\n\n"
        "At a small size the original is usually the faster one, and the report says so.",
    )
    parser.add_argument("model", type=str, help="a name of timm's, or the folder of a transformers vision model")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[224, 448, 896], help="height and width in px, one or more"
    )
    parser.add_argument("--cluster_size", type=int | None, help="most tokens of a cluster (196 without num_clusters)")
    parser.add_argument("--num_clusters", type=int | None, help="clusters at every size, instead of a cluster_size")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to patch, counted from 0; else all")
    parser.add_argument("--partition", type=str, default="sec", help="sec, or a rival: window, raster, random, ...")
    parser.add_argument("--shared", action="store_true", help="one order for all heads")
    parser.add_argument("--share_order_every", type=int, default=1, help="so many layers go by one order")
    parser.add_argument("--batch_size", type=int, default=1, help="images at a time")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each speed, after a warm-up")
    parser.add_argument("--threads", type=int, default=1, help="1 measures processor time, more measure wall clock")
    parser.add_argument("--dtype", type=Literal["float32", "bfloat16"], default="float32", help="of the arithmetic")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    parser.add_argument("--training", action="store_true", help="training steps too")
    parser.add_argument("--unfused", action="store_true", help="also the original with its L x L weights written out")
    parser.add_argument("--pretrained", action="store_true", help="weights from timm's hub, which downloads them")
    parser.add_argument("--checkpoint", type=str | None, help="weights from a file or the folder of a run")
    parser.add_argument("--images", type=str, nargs="+", default=[], help="photos to compare the features on")
    parser.add_argument("--json", type=str | None, help="also write all numbers to this file")
    parser.add_argument("--plot", type=str | None, help="also draw speed and memory over the size, PNG, PDF, ...")
    found = parser.parse_args(list(words))
    from secvit.measure.patching import patch_markdown
    from secvit.measure.patching import patch_report as run
    from secvit.vis import draw_patch_report
    from secvit.vis.picture import check_output

    if found.plot:
        check_output(found.plot)
    options = {key: value for key, value in found.as_dict().items() if key not in ("model", "size", "plot")}
    result = run(found.model, found.size, progress=sys.stderr.isatty(), **options)
    print(patch_markdown(result), end="")
    if found.plot:
        print(f"\nwrote {draw_patch_report(result, found.plot)}")
    return 0


# -- all of them -------------------------------------------------------------------------------

COMMANDS: dict[str, Command] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "detect": detect,
    "segment": segment,
    "ask": ask,
    "cluster": cluster,
    "app": app,
    "convert": convert,
    "bench": bench,
    "patch-report": patch_report,
}


def _silent() -> bool:
    """Of many processes, only the first one talks."""
    return os.environ.get("RANK", "0") != "0"


def _overview() -> str:
    lines = [f"  {name:12} {_doc(command).splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: secvit COMMAND ...", "", *lines, "", "secvit COMMAND --help says more."])


def _parser(prog: str, description: str, usage: str | None = None) -> ArgumentParser:
    with needs("the secvit command", "jsonargparse", "command"):
        from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):
        """Keeps the lines of a description as they are written."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return "\n".join(indent + line for line in text.splitlines())

    class Parser(ArgumentParser):
        """Names the files that options came from in its errors."""

        files: tuple[str, ...] = ()

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            super().error(message + _with(self.files), ex)

    return Parser(prog=prog, description=description, usage=usage, formatter_class=Formatter)


def _explain(parser: ArgumentParser, entry: str, kind: type) -> None:
    """Take the help of a recipe's numbers from the `Args:` of its dataclasses."""
    _, _, args = _doc(kind).partition("Args:\n")
    texts: dict[str, str] = {}
    for line in args.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            texts[name] = text
        elif texts:
            texts[name] += " " + line.strip()
    for action in parser._actions:
        prefix, _, field = action.dest.rpartition(".")
        if field in texts and prefix in ("", entry) and (prefix or field == entry):
            action.help = texts[field].replace("%", "%%")
    for group in parser._action_groups:
        if group.title == str(kind):
            group.title = f"{entry}: {_doc(kind).splitlines()[0]}"


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


if __name__ == "__main__":
    sys.exit(main())
