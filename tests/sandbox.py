"""What the commands and the code of the pages find in their folder: photos, data, runs; all of it small, made here."""

import atexit
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

from secvit.cli import main
from tests import fresh
from tests.conftest import ROOT
from tests.detection.make import coco_folder
from tests.images import make as images
from tests.segmentation.make import mask_folder
from tests.vlm import make as conversations

RECIPES = {
    "classification": "classification.folder",
    "detection": "detection.folder",
    "segmentation": "segmentation.folder",
    "simmim": "simmim.folder",
    "vlm": "vlm.small",
    "stage 1": "vlm.llava_pretrain_7b",
    "small stage 1": "vlm.smol_pretrain",
}
# runs whose name says the task; of others (RUN, runs/mine) it is the page's
RUNS = {
    "runs/boxes": "detection",
    "runs/digits": "classification",
    "runs/pixels": "segmentation",
    "runs/simmim": "simmim",
    "runs/small": "vlm",
    "runs/smol1": "small stage 1",
    "runs/stage1": "stage 1",
    "runs/stage2": "vlm",
}


class Sandbox:
    """A folder in which the commands and the code of a page run, each in a process of its own."""

    def __init__(self, folder: Path, task: str) -> None:
        self.folder, self.task = folder, task
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self, text: str) -> None:
        """Make what a command or a piece of code names, unless it writes it itself."""
        written = re.findall(r"--output (\S+)", text)
        for name, make in MAKES.items():
            if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w.-])", text) and not (self.folder / name).exists():
                make(self.folder / name, self.task)
        for name in re.findall(r"(?<![\w/.-])(?:runs/\w+|RUN)\b", text):
            if name not in written and not (self.folder / name).exists():
                shutil.copytree(trained(RUNS.get(name, self.task)), self.folder / name)

    def run(self, command: str, seconds: float = 600) -> None:
        """A line for a shell; an AssertionError shows what it said."""
        words = ["bash", "-c", command]
        done = subprocess.run(
            words, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    @contextmanager
    def serving(self, command: str) -> Iterator[str]:
        """The address of what serves until it is stopped."""
        words = ["bash", "-c", f"exec {command}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(words, cwd=self.folder, env=environment(), **pipes) as server:
            said = ""
            try:
                for line in server.stdout:
                    said += line
                    if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                        break
                else:
                    raise AssertionError(f"{command}\n{said}")
                yield address[0]
            finally:
                server.terminate()
                server.communicate(timeout=60)


def environment() -> dict[str, str]:
    """The commands are those of this checkout and this Python; nothing is asked of the hub."""
    paths = [programs(), os.environ.get("PATH", "")]
    sources = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join(filter(None, paths)),
        "PYTHONPATH": os.pathsep.join(filter(None, sources)),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "COLUMNS": "120",
    }


@cache
def programs() -> str:
    """A folder with `secvit`, `python` and `torchrun`."""
    folder = base() / "programs"
    folder.mkdir()
    modules = {
        "python": "",
        "secvit": "-m secvit_command",
        "torchrun": "-m torch.distributed.run",
    }
    for name, words in modules.items():
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec {fresh.shell_words()} {words} "$@"\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(folder)


@cache
def base() -> Path:
    """What is made once: data, runs, programs."""
    folder = Path(mkdtemp(prefix="secvit_pages_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def trained(task: str) -> Path:
    """A run of four steps."""
    output = base() / f"run_{task}"
    words = ["train", RECIPES[task], "--tiny", "--data", str(data(task)), "--output", str(output)]
    if main(words):
        raise AssertionError(f"secvit {' '.join(words)} failed")
    return output


@cache
def data(task: str) -> Path:
    folder = base() / f"data_{task}"
    if task == "detection":
        return coco_folder(folder)
    if task == "segmentation":
        return mask_folder(folder, splits=("train", "val", "test"))
    if task.endswith("stage 1"):
        return data("vlm")
    if task == "vlm":
        conversations.folder(folder)
        pope(folder)
        return folder
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        images.folder(folder / split, count=count)
    return folder


def pope(folder: Path) -> None:
    """POPE's questions, gqa's and ScienceQA's, about two images, and answers to the last."""
    (folder / "coco").mkdir()
    rows = [
        {"question_id": i, "image": f"{i % 2}.png", "text": f"Is there a {thing}?", "label": ["yes", "no"][i % 2]}
        for i, thing in enumerate(("cat", "dog", "tree", "cat"))
    ]
    (folder / "coco" / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    for i in range(2):
        for place in ("val2014", "data/images", "images/test"):
            images.save(folder / place / f"{i}.png", size=(40, 30))
    lines = [{"question_id": i, "image": f"{i}.png", "text": f"What is this?  {i}"} for i in range(2)]
    (folder / "llava_gqa_testdev_balanced.jsonl").write_text("\n".join(map(json.dumps, lines)))
    truths = {str(i): {"answer": "cat", "types": {"structural": "query"}} for i in range(2)}
    (folder / "data" / "testdev_balanced_questions.json").write_text(json.dumps(truths))
    turns = [{"from": "human", "value": "<image>\nWhich?\nA. cat\nB. dog"}, {"from": "gpt", "value": "A"}]
    science = [{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in range(2)]
    (folder / "llava_test_CQM-A.json").write_text(json.dumps(science))


def segments(path: Path, task: str) -> None:
    """What `secvit segment` writes."""
    photo(path.parent.parent / "photo.jpg", task)
    words = [
        "segment",
        str(trained("segmentation")),
        str(path.parent.parent / "photo.jpg"),
        "--output",
        str(path.parent),
    ]
    if main(words):
        raise AssertionError(f"secvit {' '.join(words)} failed")


# -- what a command or a piece of code may name --------------------------------------------------


def photo(path: Path, task: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images.make_image(len(path.name), (12, 9)).resize((96, 72), Image.Resampling.BICUBIC).save(path)


def photos(path: Path, task: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(path / name, task)


def masks(path: Path, task: str) -> None:
    path.mkdir()
    for name in ("a.png", "b.png"):
        mask = np.zeros((72, 96), np.uint8)
        mask[:40, :50] = 1
        Image.fromarray(mask).save(path / name)


def linked(task: str | None = None, inside: str = ""):
    """The data of a task, or of the page's."""

    def make(path: Path, page: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(data(task or page) / inside)

    return make


def stock_llava(path: Path, task: str) -> None:
    """What a download of LLaVA-1.5 is, with images of as many tokens."""
    from secvit.vlm.small import small_llava, small_tokenizer

    for part in small_llava(small_tokenizer(["what is on the left?", "a cat"]), connector=None):
        part.save_pretrained(path)


def stock_internvl(path: Path, task: str) -> None:
    """What a download of InternVL 3 is, with tiles of as many tokens."""
    from tests.vlm.families import internvl

    for part in internvl(side=128):
        part.save_pretrained(path)


def patched_folder(path: Path, task: str) -> None:
    """A patched vision tower as transformers saves it."""
    from transformers import ViTConfig, ViTModel

    import secvit

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    secvit.patch(ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)), 4).save_pretrained(path)


def vit_weights(path: Path, task: str) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("deit_small_patch16_224").state_dict(), path)


def authors_weights(path: Path, task: str) -> None:
    """Random weights of a network of the authors', as torch saves them."""
    import timm
    import torch

    from secvit.models.convert import heads_of, to_authors

    network = timm.create_model("secvit_large_release")
    torch.save({"model": to_authors(network.state_dict(), heads_of(network))}, path)


def segmenter_weights(path: Path, task: str) -> None:
    """Weights of the small backbone of --tiny."""
    import timm
    from safetensors.torch import save_file

    from secvit.segmentation.recipes import SMALL

    save_file(timm.create_model("secvit_nano", num_classes=0, **SMALL).state_dict(), path)


def answers(path: Path, task: str) -> None:
    rows = [{"question_id": str(i), "prompt": "Which?", "text": "A", "answer_id": str(i)} for i in range(2)]
    path.write_text("\n".join(map(json.dumps, rows)))


MAKES = {
    "photo.jpg": photo,
    "one.jpg": photo,
    "two.jpg": photo,
    "photos/": photos,
    "masks/": masks,
    "DIR": linked(),
    "camvid": linked("segmentation"),
    "ADEChallengeData2016": linked("segmentation"),
    "segments/photo.png": segments,
    "train.json": linked("vlm", "train.json"),
    "pictures": linked("vlm", "images"),
    "captions.json": linked("vlm", "train.json"),
    "blip_laion_cc_sbu_558k.json": linked("vlm", "train.json"),
    "llava_v1_5_mix665k.json": linked("vlm", "train.json"),
    "LLaVA-Pretrain": linked("vlm", "images"),
    "playground/data/eval/pope": linked("vlm"),
    "playground/data/eval/gqa": linked("vlm"),
    "playground/data/eval/scienceqa": linked("vlm"),
    "theirs.jsonl": answers,
    "stock_llava": stock_llava,
    "stock_internvl": stock_internvl,
    "FOLDER": patched_folder,
    "weights.safetensors": vit_weights,
    "AUTHORS.pth": authors_weights,
    "SECVIT_SMALL.safetensors": segmenter_weights,
}
