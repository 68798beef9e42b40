"""The `secvit` command: each subcommand's options are the parameters of one public function, which it calls.

secvit train classification.digits --output runs/digits
secvit evaluate runs/digits --data digits
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from secvit.runs.words import modern, taken_run
from secvit.signatures import parse, summary
from secvit_command import main

__all__ = ["main", "run"]

DEFAULT = "secvit_nano.clothing10"
# exit codes of a run that stopped early, so that `train && evaluate` does not go on; 75 is "try again" in sysexits.h
STOPPED = {"interrupted": 130, "terminated": 143, "time limit": 75}


def run(command: str, words: Sequence[str], debug: bool = False) -> int:
    """One subcommand -> its exit code.  debug: exceptions are not caught."""
    logging.basicConfig(level=logging.INFO if _talks() else logging.WARNING, format="%(message)s", stream=sys.stderr)
    for talkative in ("timm", "faster_coco_eval", "httpx", "matplotlib"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        return COMMANDS[command](modern(command, words))
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if debug:
            raise
        print(f"secvit {command}: {error}", file=sys.stderr)
        return 2


def _run_first(words: Sequence[str]) -> list[str]:
    """The words with the run that --run names in front."""
    run, others = taken_run(words) if "--run" in words else ("", list(words))
    return [run, *others] if run else others


def _asks_for_help(words: Sequence[str]) -> bool:
    return not words or words[0] in ("-h", "--help")


# -- the commands ------------------------------------------------------------------------------


def train(words: Sequence[str]) -> int:
    from secvit import recipe_options, runs

    if _asks_for_help(words):
        print(recipe_options.overview())
        return 0
    order = recipe_options.read(words)
    work: Callable[..., dict[str, Any] | None] = runs.train
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun then shows the error of the process that failed first
        from torch.distributed.elastic.multiprocessing.errors import record

        work = record(work)
    from secvit.draw.curves import draw_curves

    output = Path(order.output)
    try:
        result = work(order.recipe, order.data, output, order.resume, name=order.name) or {}
    except KeyboardInterrupt:
        from secvit.train import latest

        last = latest(output)
        saved = f"the same command goes on from {last.name}" if last else "nothing was saved yet"
        print(f"interrupted; {saved}", file=sys.stderr)
        return STOPPED["interrupted"]
    if not _talks():
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


def evaluate(words: Sequence[str]) -> int:
    def score(json: str | None = None) -> None:
        """json: also write the numbers to this file."""

    trained, options, more = _opened("evaluate", words, "evaluate", extra=score)
    from secvit.files import check_target, write_atomically
    from secvit.progress import table

    if more["json"]:
        check_target(more["json"])
    scores = trained.evaluate(**options)
    if not _talks():
        return 0
    print(table(scores), end="")
    if more["json"]:
        write_atomically(Path(more["json"]), json.dumps(scores, indent=2).encode())
    return 0


def predict(words: Sequence[str], task: str | None = None) -> int:
    trained, options, _ = _opened("predict", words, "photos", ("photos",), DEFAULT if task is None else None, task)
    return _made("predict", trained.photos(**options, tell=print))


def _made(command: str, made: Any) -> int:
    for reason in made.skipped:
        print(f"secvit {command}: left out {reason}", file=sys.stderr)
    return 2 if made.skipped else 0


def _opened(
    command: str, words: Sequence[str], method: str, positional: Sequence[str] = (), default: str | None = None,
    task: str | None = None, extra: Callable[..., Any] | None = None,
) -> tuple[Any, dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The run that words are about, what they say for a method of it, and for `extra`."""
    from secvit import runs

    chosen, words = taken_run(words, default)
    model = words[words.index("--model") + 1] if "--model" in words[:-1] else None
    kind = runs.kind_of(chosen, model)
    if task and kind.task != task:
        raise ValueError(f"{chosen} is a run of {kind.task}, not of {task}; secvit predict takes any")

    def owner(option: str) -> str:
        others = [name for name in runs.KINDS if name != kind.task and option in runs.options_of(name, method)]
        return f"runs of {', '.join(others)}" if others else ""

    work = getattr(kind, method)
    about = f"{chosen} is a run of {kind.task}.\n\n{summary(work)}"
    functions = [kind.__init__, work, *([extra] if extra else [])]
    parsed = parse(f"secvit {command} {chosen}", words, functions, positional, about, elsewhere=owner)
    return runs.open(chosen, **parsed[0]), parsed[1], parsed[2] if extra else {}


def ask(words: Sequence[str]) -> int:
    def answer(photos: Sequence[str], question: str, device: str | None = None, max_new_tokens: int = 256) -> str:
        """The answer of a vision-language model to a question about one or more photos together.

        photos: image files of any format and size.
        question: what to ask about them.
        device: cpu, cuda, ...; the GPU if there is one.
        max_new_tokens: most tokens of the answer.
        """
        from secvit.vlm import ask, load_trained

        images = [read_image(photo) for photo in photos]
        return ask(*load_trained(chosen, device), images, question, max_new_tokens)

    from secvit.images import read_image

    examples = 'secvit ask runs/mine photo.jpg "How many people are there?"'
    words = _run_first(words)
    chosen = "RUN" if _asks_for_help(words) else words[0]
    words = words if _asks_for_help(words) else words[1:]
    print(answer(**parse(f"secvit ask {chosen}", words, [answer], ("photos", "question"), examples=examples)[0]))
    return 0


CLUSTER = """\
secvit cluster photo.jpg                                     photo_clusters.png
secvit cluster RUN photo.jpg -o clusters.png --gradcam       a network you trained; what speaks for the likeliest class
secvit cluster photos/ more/*.png -o pictures --gif          a folder; animations through all blocks, too
secvit cluster photo.jpg --stage 2 --block all --head all --style outlined
secvit cluster photo.jpg --compare --num_clusters 8          window, k-means and SEC, sizes and times
secvit cluster photo.jpg --attends 0.4,0.6 --near 2 --far    what the token at this place attends to
secvit cluster photos/ --page -o page.png                    one page: clusters and Grad-CAM of all photos
secvit cluster photos/ --metrics --masks masks/              do clusters follow objects, and do they stay?
secvit cluster weights.safetensors photo.jpg --model deit_small_patch16_224 --cluster_size 49
secvit cluster deit_small_patch16_224 photo.jpg --num_clusters 8 --partition tree --near 2 --far --attends 200,120"""


def cluster(words: Sequence[str]) -> int:
    from secvit.vis import show_clusters
    from secvit.vis.clusters import UNTRAINED
    from secvit.vis.metrics import metrics_table
    from secvit.vis.view import View

    chosen, words = taken_run(words, DEFAULT)
    options = parse("secvit cluster [RUN]", words, [show_clusters], ("photos",), examples=CLUSTER, skip=("run",))[0]
    made = show_clusters(**options, run=chosen)
    for done, paths in (("wrote", made.written), ("replaced", made.replaced)):
        print("".join(f"{done} {path}\n" for path in paths), end="")
    code = _made("cluster", made)
    if made.rows:
        print(metrics_table(made.rows), end="")
    if (note := View(chosen).note) == UNTRAINED:
        print(note)
    return code


def app(words: Sequence[str]) -> int:
    from secvit.app import serve

    examples = "secvit app\nsecvit app RUN           your own network, first among the models"
    serve(**parse("secvit app", _run_first(words), [serve], ("run",), examples=examples)[0])
    return 0


def export(words: Sequence[str]) -> int:
    trained, options, _ = _opened("export", words, "export")
    made = trained.export(**options)
    difference = made["compared_with_pytorch"]["largest_difference"]
    print(f"wrote {made['file']}, and {made['file']}.json; at most {difference:.1e} from PyTorch in {made['runtime']}")
    return 0


def push(words: Sequence[str]) -> int:
    from secvit.runs import push as work

    examples = "secvit push runs/mine USER/NAME\nsecvit push runs/mine USER/NAME --to folder   what would be uploaded"
    print(work(**parse("secvit push", words, [work], ("run", "name"), examples=examples)[0]))
    return 0


PATCH = """\
secvit patch-report vit_base_patch16_224 --size 224 512 1024           random weights: speed and memory
secvit patch-report deit3_small_patch16_384 --pretrained --photos photos/   and what becomes of features
secvit patch-report FOLDER --quality faithful --photos photos/ more.jpg   slower, and nearer to the original
secvit patch-report deit_small_patch16_224 --num_clusters 4 --layers 6 7 8 9 10 11
secvit patch-report FOLDER --size 256 512 --training --json out.json --plot out.png"""


def patch_report(words: Sequence[str]) -> int:
    from secvit.measure.patch_tables import patch_markdown
    from secvit.measure.patching import patch_report as work

    options = parse("secvit patch-report", _run_first(words), [work], ("run",), examples=PATCH)[0]
    print(patch_markdown(work(**options, progress=sys.stderr.isatty())), end="")
    if options["plot"]:
        print(f"\nwrote {options['plot']}")
    return 0


def bench(words: Sequence[str]) -> int:
    if words[:1] == ["connector"]:
        from secvit.measure.connector_tables import connector_markdown
        from secvit.measure.connectors import connector_report

        options = parse("secvit bench connector", words[1:], [connector_report])[0]
        print(connector_markdown(connector_report(**options, progress=sys.stderr.isatty())), end="")
        return 0
    from secvit.measure.bench import report, run

    print(report(run(**parse("secvit bench", words, [run])[0], progress=sys.stderr.isatty())))
    return 0


def convert(words: Sequence[str]) -> int:
    from secvit.models.convert import convert as work

    examples = (
        "secvit convert AUTHORS.pth OUT.safetensors --model secvit_large_release\n"
        '  then: timm.create_model("secvit_large_release", checkpoint_path="OUT.safetensors")'
    )
    options = parse("secvit convert", words, [work], ("source", "target"), examples=examples)[0]
    print(f"wrote {work(**options)} tensors to {options['target']}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "compare": lambda words: import_module("secvit.compare.options").work(words, STOPPED),
    "evaluate": evaluate,
    "predict": predict,
    "cluster": cluster,
    "ask": ask,
    "detect": lambda words: predict(words, "detection"),
    "segment": lambda words: predict(words, "segmentation"),
    "app": app,
    "export": export,
    "push": push,
    "patch-report": patch_report,
    "bench": bench,
    "convert": convert,
}


def _talks() -> bool:
    """Of many processes, only the first one talks."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
