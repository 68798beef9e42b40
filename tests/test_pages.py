"""Every command and every piece of Python in README.md and docs/*.md runs, in a process of its own.

Comments in a page say what follows them:
    <!-- sandbox: detection -->     DIR and runs/mine are of this task (at a page's beginning: classification)
    <!-- sandbox: tree -->          the section's trees are there, built as in tests/images/test_layouts.py
    <!-- file: rules.py -->         the next block is this file's text
Commands stand in blocks marked `console`, one a line; the pieces of Python of a page are one program.
"""

import importlib.util
import re
import shlex
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from secvit import recipes
from secvit.cli import main
from secvit_command import COMMANDS
from tests.conftest import ROOT
from tests.images.test_layouts import build
from tests.sandbox import RECIPES, RUNS, Sandbox

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = "http://127.0.0.1:7860"  # where `secvit app` is served
LANGUAGES = ("console", "bash", "python", "text", "json", "csv")

# what no test can run, and why; each of these must stand in a page
NOT_RUN = {
    r"pip install ": "changes the environment",
    r"make ": "sets up an environment of its own; examples/demo.py and the tests are run by themselves",
    r"#!/bin/bash\n#SBATCH ": "needs SLURM and several machines",
    r"vllm serve": "needs vLLM: make test-vllm runs it",
    r"lmms_eval ": "needs data of the hub: tests/vlm/test_lmms.py runs it on a task of its own",
    r"secvit evaluate llava-hf/llava-1.5-7b-hf": "needs the weights of a 7B model",
}
# the short form of a command, by options that the pages document, or a smaller machine
SHORT = (
    (r"\bRECIPE\b", "classification.folder"),
    (r"--nproc-per-node 8", "--nproc-per-node 2"),
    (r"(secvit train classification.folder --data (?:photos|CLS-LOC).*)", r"\1 --loop.batch_size 2"),  # trees of a few images
    (r"((?:secvit|secvit\.cli|rules\.py) train \S+)(?!.*--help)", r"\1 --tiny"),
    (r"(secvit compare \S+ .*--vary .*)", r"\1 --tiny"),
    # a download, and a network of minutes
    (r"vit_small_patch16_224 (.*)448(.*)448(.*)196", r"vit_tiny_patch16_224 --model.pretrained false \g<1>64\g<2>64\g<3>4"),
    (r"(secvit push .*)", r"\1 --to pushed"),
    (r"(secvit bench)", r"\1 --models secvit_nano --image_size 32 --batch_size 1 --rounds 1 --lengths 196 --large 32 64"),
    (r"(secvit patch-report .*--size)[ \d]+", r"\1 32 64 --rounds 1 "),
    (r"(secvit patch-report .*)--pretrained ", r"\1"),
)  # fmt: skip
# the same for Python: downloads, and networks and trainings of hours
SMALLER = (
    ("llava-hf/llava-1.5-7b-hf", "stock_llava"),
    ("OpenGVLab/InternVL3-1B-hf", "stock_internvl"),
    ('"vit_base_patch14_dinov2", pretrained=True', '"vit_base_patch14_dinov2", pretrained=False'),
    ('"resnet50", 3, backbone_args={"pretrained": True}', '"resnet18", 3, min_size=128, max_size=256'),
    ("recipes.folder()", "recipes.tiny(recipes.folder())"),
)
# what not every environment has
NEEDS = {
    "secvit app": "gradio",
    "gradio_client": "gradio_client",
    "hfds/": "datasets",
    "--format openvino": "openvino",
    "executorch": "executorch",
}
# these run in `make test`; all others in `make test-all`
QUICK = (
    "secvit predict photo.jpg",
    "secvit train classification.digits --output runs/digits",
    "secvit evaluate runs/digits --wrong wrong.png",
    "secvit push runs/digits USER/NAME",
)
QUICK_PYTHON = ("README.md", "extending.md", "runs.md")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first line, from 1
    language: str
    text: str
    sandbox: str
    section: str  # what stands in its section
    file: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


@cache
def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text, sandbox = page.read_text(), "classification"
        marks = r"<!-- (?P<mark>sandbox|file): (?P<value>\S+) -->|^```(?P<language>.*)\n(?P<text>(?:.*\n)*?)```$"
        file = ""
        for match in re.finditer(marks, text, re.MULTILINE):
            if match["mark"] == "sandbox":
                sandbox = match["value"]
            elif match["mark"]:
                file = match["value"]
            else:
                line = text.count("\n", 0, match.start("text")) + 1
                start = max(text.rfind("\n## ", 0, match.start()), 0)
                end = text.find("\n## ", match.end())
                section = text[start : end if end > 0 else len(text)]
                found.append(Block(page, line, match["language"], match["text"], sandbox, section, file))
                file = ""
    return found


def commands() -> list[tuple[str, Block]]:
    """The lines of console blocks without their comments, and whole bash scripts."""
    found = []
    for block in blocks():
        if block.language == "bash":
            found.append((block.text, block))
        elif block.language == "console":
            lines = [re.sub(r"(^|\s+)#.*$", "", line) for line in block.text.replace("\\\n", " ").splitlines()]
            found += [(re.sub(r"  +", " ", line).strip(), block) for line in lines if line.strip()]
    return found


def outside_of_fences(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def inline() -> list[tuple[str, Path]]:
    """Commands of ours with options, in running text."""
    found = []
    for page in PAGES:
        spans = [" ".join(span.split()) for span in re.findall(r"`(secvit [^`]*)`", outside_of_fences(page))]
        found += [(span, page) for span in spans if "--" in span and "..." not in span]
    return found


def reason_not_to_run(command: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if re.match(start, command)), None)


def shortened(command: str) -> str:
    for pattern, replacement in SHORT:
        command = re.sub(pattern, replacement, command)
    return command


def needed(text: str) -> str | None:
    return next((package for words, package in NEEDS.items() if words in text), None)


def skip_without(package: str | None) -> None:
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install {package}")


def sandbox_of(block: Block, folder: Path, text: str) -> Sandbox:
    if block.sandbox == "tree":
        build(folder, block.section)
    sandbox = Sandbox(folder, "classification" if block.sandbox == "tree" else block.sandbox)
    for other in blocks():
        if other.page == block.page and other.file:
            (folder / other.file).write_text(other.text)
    sandbox.prepare(text)
    return sandbox


# -- what stands in the pages --------------------------------------------------------------------


def test_a_block_says_what_it_is():
    assert [f"{block.place}: {block.language!r}" for block in blocks() if block.language not in LANGUAGES] == []
    command = r" *(secvit|python|pip|make|torchrun) "
    fenced = [
        (f"{b.place}: {line}", line)
        for b in blocks()
        if b.language in ("text", "json", "csv")
        for line in b.text.splitlines()
    ]
    plain = [
        (f"{page.name}: {line}", line)
        for page in PAGES
        for line in outside_of_fences(page).splitlines()
        if line[:4] == "    "
    ]
    assert [place for place, line in fenced + plain if re.match(command, line)] == []


def test_what_is_not_run_stands_in_a_page_and_is_not_ours():
    unused = [start for start in NOT_RUN if not any(re.match(start, command) for command, _ in commands())]
    assert unused == []


def test_a_short_form_is_needed():
    every = "\n".join(command for command, _ in commands())
    assert [pattern for pattern, _ in SHORT if not re.search(pattern, every)] == []
    code = "\n".join(block.text for block in blocks() if block.language == "python")
    assert [text for text, _ in SMALLER if text not in code] == []


def ours() -> list[tuple[str, str, str]]:
    """Our commands in blocks and in running text, with the page's name and the sandbox."""
    found = {(span, page.name, "vlm" if "--benchmark" in span else "classification") for span, page in inline()}
    for text, block in commands():
        lines = text.replace("\\\n", " ").splitlines()
        found |= {(line, block.page.name, block.sandbox) for line in lines if re.search(OURS, line)}
    return sorted(found)


OURS = r"^secvit |-m secvit\.cli |rules\.py "


@pytest.mark.parametrize("page", sorted({page for _, page, _ in ours()}))
def test_commands_of_a_page_have_only_options_that_exist(page, tmp_path, monkeypatch, capsys):
    """Each is parsed and not run: --print_config ends it."""
    wrong = []
    for command, _, task in (row for row in ours() if row[1] == page):
        (tmp_path / task).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / task)
        words = shlex.split(command.replace("RECIPE", "classification.folder"))
        words = words[1 + next(i for i, word in enumerate(words) if word in ("secvit", "secvit.cli", "rules.py")) :]
        if words[0] not in COMMANDS:
            wrong.append(f"{command}: no command")
            continue
        if "--help" in words or "--version" in words:
            continue
        for word in words:  # runs, of which parsing reads the task alone
            if re.fullmatch(r"runs/\w+|RUN\d?", word) and not Path(word).exists():
                look_like_a_run(Path(word), task)
            elif word.endswith(".jsonl"):
                Path(word).touch()
        if words[0] == "train":
            words = [*words, *(() if "--data" in words else ("--data", "DIR"))]
        try:
            code = main([*words, "--print_config"])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        if code:
            wrong.append(f"{command}: {said.err.strip()}")
    assert wrong == [], "\n".join(wrong)


def look_like_a_run(folder: Path, task: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"task: {RECIPES[RUNS.get(str(folder), task)].partition('.')[0]}\n")
    (folder / "model.safetensors").touch()


def test_recipes_named_by_a_page_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    for name in set(
        re.findall(r"secvit(?:\.cli)? train ((?:classification|detection|segmentation|simmim|vlm)\.\w+)", text)
    ):
        recipes.find(name)


# -- what the pages do -----------------------------------------------------------------------------


def runnable() -> list:
    rows, seen = [], set()
    for command, block in commands():
        key = (command, block.sandbox, block.section if block.sandbox == "tree" else "")
        if reason_not_to_run(command) or key in seen:
            continue
        seen.add(key)
        marks = [] if command in QUICK else [pytest.mark.slow]
        rows.append(pytest.param(command, block, id=f"{block.page.stem}: {command[:80]}", marks=marks))
    return rows


@pytest.mark.parametrize("command, block", runnable())
def test_command_runs(command, block, tmp_path):
    skip_without(needed(command))
    sandbox = sandbox_of(block, tmp_path / "here", command)
    if command.startswith("secvit app"):
        with sandbox.serving(command):
            pass
    else:
        sandbox.run(shortened(command))


def programs() -> list:
    """A page with its pieces of Python; those that need another package are a program of their own, with the others.

    A file is a program of its own, too.
    """
    files = [block for block in blocks() if block.file]
    rows = [pytest.param([block], "", id=block.file, marks=[pytest.mark.slow]) for block in files]
    for page in PAGES:
        pieces = [b for b in blocks() if b.page == page and b.language == "python" and not b.file]
        for package in sorted({needed(piece.text) or "" for piece in pieces}):
            marks = [] if page.name in QUICK_PYTHON and not package else [pytest.mark.slow]
            chosen = [piece for piece in pieces if needed(piece.text) in (None, package)]
            rows.append(pytest.param(chosen, package, id=f"{page.stem} {package}".strip(), marks=marks))
    return rows


@pytest.mark.parametrize("pieces, package", programs())
def test_python_of_a_page_runs(pieces, package, tmp_path):
    """Lines keep their numbers, so that a traceback names the line of the page."""
    skip_without(package)
    page = pieces[0].page
    lines = [""] * (page.read_text().count("\n") + 1)
    for piece in pieces:
        text = piece.text
        for big, small in SMALLER:
            text = text.replace(big, small)
        lines[piece.line - 1 : piece.line - 1 + text.count("\n")] = text.splitlines()
    program = "\n".join(lines)
    sandbox = sandbox_of(pieces[0], tmp_path, program)
    with sandbox.serving("secvit app") if PAGE in program else nullcontext(PAGE) as address:
        (tmp_path / f"{page.stem}_page.py").write_text(program.replace(PAGE, address))
        sandbox.run(f"python {page.stem}_page.py")
