"""The `secvit` command before PyTorch is imported: its overview, its version, and Ctrl-C in the first second."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train by a recipe, and score on what was held out",
    "compare": "train variants of a recipe with the same seeds, and say whether their scores differ",
    "evaluate": "score a run on a split",
    "predict": "say what is in photos: classes, objects, pixels or answers, as the run was trained for",
    "cluster": "draw what each stage of a network puts together in photos",
    "ask": "ask a vision-language model about photos",
    "detect": "predict, of a detector: boxes and masks drawn over photos, and a COCO JSON",
    "segment": "predict, of a segmenter: overlays, and an indexed PNG for each photo",
    "app": "serve a page to play with: clusters and Grad-CAM of your photos",
    "export": "write a run as ONNX, OpenVINO or torch.export, checked in that runtime",
    "push": "upload a run to the Hugging Face hub, as timm and transformers load it",
    "patch-report": "say what clusters in the attention of a ViT cost and save, by image size",
    "bench": "time our networks beside timm's; `bench connector`: image tokens of a LLaVA",
    "convert": "turn the authors' checkpoints into ours, or back",
}
OVERVIEW = """\
usage: secvit COMMAND ...

{commands}

RUN is the folder of `secvit train`, a weight file, or the name of weights that come along (secvit_nano.clothing10).
secvit COMMAND --help says more; of evaluate and predict, secvit COMMAND RUN --help says what this run takes.
--debug shows tracebacks."""

# what does not depend on the run; `secvit evaluate RUN --help` lists the options for one
HELP = {
    "evaluate": """\
usage: secvit evaluate RUN --data DIR [options]

Score a run on a split: accuracy of each class and of all, box and mask AP, mIoU, a benchmark's figures.

secvit evaluate RUN                                          on what was held out of the data that it learned from
secvit evaluate RUN --data DIR --split test --confusion c.png --wrong wrong.png      a classifier
secvit evaluate RUN --data DIR --max_dets 300 --size 800                             a detector
secvit evaluate RUN --data DIR --scales 0.75 1 1.25 --flip --confusion c.png         a segmenter
secvit evaluate RUN --benchmark pope --data DIR                                      a LLaVA
secvit evaluate FILE.jsonl --benchmark pope --data DIR                               answers, of whatever model
secvit evaluate secvit_nano.cifar10 --data DIR                                       weights that come along

secvit evaluate RUN --help lists the options for that run.""",
    "predict": """\
usage: secvit predict [RUN] PHOTO... [options]

What is in photos, or in folders of them: classes, objects, the class of every pixel, or an answer, as the run was
trained for.

secvit predict photo.jpg                                    ten kinds of clothes (secvit_nano.clothing10)
secvit predict RUN photos/ more/*.png --json found.json --csv found.csv       a classifier
secvit predict RUN photo.jpg --output found --score 0.3                       a detector: pictures, and a COCO JSON
secvit predict RUN photos/ --window 512 --size 0                              a segmenter: overlays and indexed PNGs
secvit predict RUN photo.jpg --question "How many people are there?"          a LLaVA

secvit predict RUN --help lists the options for that run.""",
}
HELP["export"] = """\
usage: secvit export RUN [options]

A run's network as a file for another runtime, compared with PyTorch there before it is kept (docs/export.md).

secvit export RUN                                            RUN/model.onnx, and a JSON of size, mean, std and names
secvit export RUN --dynamic                                  for images of any height and width
secvit export RUN --int8 --photos photos/                    weights in 8 bits, judged by photos
secvit export RUN --format openvino --output net.xml         or pt2: PyTorch without this package

secvit export RUN --help lists the options for that run."""
HELP["detect"] = HELP["segment"] = HELP["predict"]


def overview() -> str:
    return OVERVIEW.format(commands="\n".join(f"  {name:12} {about}" for name, about in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 0, 2 for input that cannot be used, 130 for Ctrl-C, ..."""
    words = list(sys.argv[1:] if argv is None else argv)
    named = [word for word in words if word != "--debug"]
    if not named or named[0] in ("-h", "--help"):
        print(overview())
        return 0
    if named[0] == "--version":
        from importlib.metadata import version

        print(f"secvit {version('secvit')}")
        return 0
    if named[0] not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(named[0], COMMANDS, 1)
        meant = f"; did you mean {near[0]}?" if near else f"; one of {', '.join(COMMANDS)}"
        print(f"secvit: no command {named[0]!r}{meant}", file=sys.stderr)
        return 2
    if named[0] in HELP and (not named[1:] or named[1] in ("-h", "--help")):
        print(HELP[named[0]])
        return 0
    try:
        from secvit.cli import run

        return run(named[0], named[1:], debug="--debug" in words)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"secvit {named[0]}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
