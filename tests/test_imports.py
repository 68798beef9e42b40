"""Imports point one way, `import secvit` stays light, and what is left out of an installation is named."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import PurePath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "secvit"
# What each module or package of secvit may import, from the ground up: only what stands above it in this table.
# `import secvit` and what is in `extras` anybody may use.
TASK = {"models", "train", "images", "weights", "fields", "files", "processes"}
MAY_IMPORT = {
    # the ground
    "extras": set(),
    "hub": set(),
    "processes": set(),
    "progress": set(),
    "provenance": set(),
    "precision": set(),
    "files": set(),
    "fields": set(),
    "splits": set(),
    "signatures": set(),
    "registry": set(),
    "loading": {"fields"},
    "weights": {"fields"},
    "paper": {"fields"},
    # the method
    "ops": set(),
    "layers": {"ops"},
    "adapt": {"ops"},
    "connectors": {"ops", "registry"},
    "models": {"ops", "layers", "adapt", "weights", "fields", "files", "hub"},
    # data, training, drawing: of any task
    "images": {"fields", "files", "loading", "processes", "progress", "registry", "splits"},
    "train": {"fields", "files", "loading", "processes", "progress", "provenance", "weights"},
    "draw": {"files"},
    "export": {"files"},
    # a task each: none imports another
    "classification": TASK | {"ops", "draw", "precision"},
    "simmim": TASK | {"ops", "precision"},
    "detection": TASK | {"ops", "draw", "progress", "splits"},
    "segmentation": TASK | {"ops", "draw", "progress", "splits"},
    "vlm": TASK | {"connectors", "hub", "progress", "splits"},
    # across tasks
    "measure": {"adapt", "connectors", "ops", "layers", "models", "images", "draw", "files", "hub", "provenance"},
    "recipes": {"models", "registry"},
    "runs": {"models", "train", "images", "draw", "files", "recipes", "registry", "export", "fields"}
    | {"classification", "simmim", "detection", "segmentation", "vlm"},
    "vis": {"ops", "adapt", "connectors", "models", "images", "draw", "files", "measure", "segmentation", "runs"},
    "app": {"classification", "images", "models", "draw", "vis"},
    "recipe_options": {"fields", "recipes", "signatures"},
    "compare": {
        "fields",
        "files",
        "paper",
        "progress",
        "train",
        "draw",
        "recipes",
        "recipe_options",
        "runs",
        "signatures",
    },
    "cli": {
        "files",
        "progress",
        "signatures",
        "models",
        "images",
        "train",
        "draw",
        "vlm",
        "measure",
        "recipe_options",
        "runs",
    }
    | {"vis", "app"},
    "__init__": {"ops", "layers", "adapt", "connectors", "models"},
}
LIBRARIES = {
    **{name: set() for name in ("extras", "files", "progress")},
    "processes": {"torch"},
    "loading": {"torch"},
    "splits": {"numpy"},
    "draw": {"matplotlib", "numpy", "PIL"},
    "ops": {"torch"},
    "connectors": {"torch"},
    "train": {"torch", "safetensors", "numpy", "tqdm", "yaml", "timm", "wandb"},  # timm.optim; a tracker
    # timm.data; the digits; hfds/ and what it stands on
    "images": {"PIL", "numpy", "torch", "tqdm", "timm", "sklearn", "datasets", "pyarrow"},
}


def imports(path):
    """Modules that a file imports, those under TYPE_CHECKING left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(SOURCE.rglob("*.py"))


def part_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def own_imports(path):
    """The packages and modules of secvit, other than its own, that a file imports."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("secvit.")}
    return found - {part_of(path), "extras", "__version__"}


def test_every_package_has_a_floor_and_stands_on_lower_ones_only():
    parts = list(MAY_IMPORT)
    assert set(parts) == {part_of(path) for path in FILES}
    for floor, part in enumerate(parts):
        assert MAY_IMPORT[part] <= set(parts[:floor]), f"an arrow goes up from {part}"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_what_a_package_may_import_is_what_it_imports(part):
    found = {name for path in FILES if part_of(path) == part for name in own_imports(path)}
    assert found == MAY_IMPORT[part]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_libraries_follow_the_design(path):
    part = part_of(path)
    other = {name.split(".")[0] for name in imports(path)} - {"secvit"} - sys.stdlib_module_names
    kernels = {"triton"} if path.relative_to(SOURCE).as_posix().startswith("ops/triton/") else set()
    assert other - kernels <= LIBRARIES.get(part, other)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_is_hidden_by_a_function_of_its_name(path):
    """`secvit.ops.order`, as an attribute, is the module."""
    if path.stem == "__init__":
        return
    package = importlib.import_module(".".join(["secvit", *path.relative_to(SOURCE).parts[:-1]]))
    assert not callable(getattr(package, path.stem, None)), "rename one of the two"


def test_subpackages_are_there_after_import_secvit():
    code = "import secvit; secvit.vis.View; secvit.train.Loop; secvit.fields.Entry; assert 'vlm' in dir(secvit)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_secvit_loads_no_extra():
    heavy = ["transformers", "accelerate", "matplotlib", "gradio", "faster_coco_eval", "pycocotools", "sklearn", "onnx"]
    code = f"import sys, secvit; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- a lean installation -----------------------------------------------------------------------


INSTALLED = {canonicalize_name(one.metadata["Name"]): one for one in distributions()}


def brought_by(*names: str) -> set[str]:
    """The distributions that pip installs with these, by their own metadata."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in INSTALLED and name not in found:
            found.add(name)
            needed = map(Requirement, INSTALLED[name].requires or [])
            waiting += [one.name for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


LEAN = """
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
sys.path_importer_cache.clear()
for name in ("jsonargparse", "matplotlib"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} is there: this process is not lean")
"""


def run_with(installed: tuple[str, ...], code: str) -> str:
    """What code prints in a process that has nothing but secvit, these packages and what they bring."""
    kept = brought_by(*installed) | {"secvit"}
    modules: dict[bool, set[str]] = {True: set(), False: set()}
    for name, one in INSTALLED.items():
        tops = (PurePath(file).parts[0] for file in one.files or [])
        names = {top.partition(".")[0] for top in tops if top.endswith((".py", ".so", ".pyd")) or top.isidentifier()}
        modules[name in kept] |= names
    absent = modules[False] - modules[True]
    code = f"ABSENT = {absent}\n{LEAN}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


CORE = """
import importlib.util

import timm, torch
import secvit, secvit.adapt, secvit.connectors, secvit.extras, secvit.models, secvit.ops
import secvit.classification, secvit.images, secvit.recipes, secvit.segmentation, secvit.simmim, secvit.train

q = torch.randn(1, 2, 50, 16)
assert secvit.sec_attention(q, q, q, cluster_size=7).shape == q.shape
assert timm.create_model("secvit_nano", num_classes=10).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)
assert timm.create_model("secvit_nano.cifar10", pretrained=True).num_classes == 10
tokens, cls, attention = torch.randn(1, 576, 32), torch.randn(1, 32), torch.rand(1, 576)
for name in secvit.connectors.CONNECTORS:
    connector = secvit.connectors.create(name, 32, 48).eval()
    assert connector(tokens, cls, attention).shape[::2] == (1, 48)
vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3).eval()
secvit.patch(vit, cluster_size=4)
assert vit(torch.randn(1, 3, 64, 64)).shape == (1, 3)
secvit.unpatch(vit)
assert secvit.segmentation.upernet("resnet18", 5).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)

import contextlib, io, tempfile
from secvit.cli import main
from secvit.train import Loop, Schedule, fit


def message(work):
    try:
        work()
    except ImportError as error:
        return str(error)


print(message(lambda: importlib.import_module("secvit.vis")))
print(message(lambda: importlib.import_module("secvit.vlm")))
print(message(lambda: importlib.import_module("secvit.detection")))
class Task(torch.nn.Linear):
    def forward(self, batch):
        return {"loss": super().forward(batch).square().mean()}


task = Task(1, 1)
with tempfile.TemporaryDirectory() as folder:
    optimizer = torch.optim.SGD(task.parameters(), 0.1)
    loop = Loop(steps=2, batch_size=1, device="cpu", trackers=())
    assert fit(task, optimizer, torch.ones(3, 1), loop, Schedule(), folder).step == 2
print(message(lambda: secvit.images.load_split("digits", "train")))
assert main(["--help"]) == 0 and main(["train", "--help"]) == 0 and main(["--version"]) == 0
for words in (["train", "classification.digits"], ["predict", "a.jpg"], ["cluster", "a.jpg"], ["app"], ["bench"]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(words) == 2
    print(said.getvalue().strip())
"""

INSTALL = r'run: pip install "secvit\[{0}\]" \(in a clone: pip install "\.\[{0}\]"\)'


@pytest.fixture(scope="module")
def core_says() -> str:
    return run_with(("torch", "torchvision", "timm"), CORE)


def test_the_core_needs_only_torch_and_timm_and_what_they_bring(core_says):
    assert core_says


@pytest.mark.parametrize(
    "who, package, extra",
    [
        ("secvit.vis", "matplotlib", "vis"),
        ("secvit.vlm", "transformers", "vlm"),
        ("secvit.detection", "faster-coco-eval", "detection"),
        ("the data set of digits", "scikit-learn", "demo"),
        ("secvit train: the secvit command", "jsonargparse", "command"),
        ("secvit predict: the secvit command", "jsonargparse", "command"),
        ("secvit cluster: secvit.vis", "matplotlib", "vis"),
        ("secvit app: the secvit command", "jsonargparse", "command"),
        ("secvit bench: secvit.draw", "matplotlib", "vis"),
    ],
)
def test_what_a_lean_installation_lacks_is_named_in_one_line(core_says, who, package, extra):
    assert re.search(rf"^{re.escape(who)} needs {package}; {INSTALL.format(extra)}$", core_says, re.MULTILINE), (
        core_says
    )


def test_a_llava_is_served_by_the_vlm_extra_alone(tmp_path):
    for name in ("transformers", "sentencepiece"):
        pytest.importorskip(name, reason='pip install "secvit[vlm]"')
    code = f"""
import torch
from PIL import Image
import secvit.vlm, secvit.vlm.serving
from secvit.vlm.small import small_llava, small_tokenizer

folder = {str(tmp_path)!r}
llava, processor = small_llava(small_tokenizer(["a cat"]), image_size=32, dim=32, num_tokens=16)
llava.save_pretrained(folder), processor.save_pretrained(folder)
llava, processor = secvit.vlm.load_trained(folder, "cpu")
assert isinstance(secvit.vlm.ask(llava, processor, [Image.new("RGB", (40, 30))], "what?", max_new_tokens=3), str)
stock, processor = small_llava(small_tokenizer(["a cat"]), None, image_size=32, dim=32)
processor = secvit.vlm.use_connector(stock, processor, "sec", num_tokens=16)
print("served")
"""
    said = run_with(("torch", "torchvision", "timm", "transformers", "sentencepiece", "protobuf"), code)
    assert said.strip().endswith("served")


# -- what is declared --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names_in(project: dict, *extras: str) -> set[str]:
    """The packages of extras, those of the extras that they name included."""
    found: set[str] = set()
    for extra in extras:
        for one in map(Requirement, project["optional-dependencies"][extra]):
            found |= names_in(project, *one.extras) if one.name == "secvit" else {one.name}
    return found


def test_the_declared_core_is_torch_and_timm_and_what_they_bring(project):
    assert {Requirement(one).name for one in project["dependencies"]} <= brought_by("torch", "torchvision", "timm")


def test_all_is_every_extra_and_tests_have_what_they_need(project):
    users = set(project["optional-dependencies"]) - {"dev"}
    assert names_in(project, "all") == names_in(project, *users)
    assert names_in(project, "all") - {"gradio"} <= names_in(project, "dev")  # make test-app installs it


def test_extras_that_messages_and_pages_name_exist_and_the_readme_installs_the_command(project):
    extras, named = set(project["optional-dependencies"]), set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needs" and len(node.args) == 3:
                named.add(node.args[2].value)
    assert named and named <= extras
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = {page.name: re.findall(r"""pip install "?(?:secvit|\.)\[([\w,]+)\]""", page.read_text()) for page in pages}
    for page, found in lines.items():
        assert {extra for line in found for extra in line.split(",")} <= extras, page
    assert {"jsonargparse", "matplotlib"} <= names_in(project, *lines["README.md"][0].split(","))
