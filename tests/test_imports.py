"""Imports point one way, and `import secvit` stays light."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "secvit"
SLICES = {"classification", "simmim", "detection", "segmentation", "vlm"}
MAY_IMPORT = {
    "ops": set(),
    "fields": set(),
    "models": {"ops", "adapt", "weights", "fields"},
    "adapt": {"ops"},
    "connectors": {"ops"},
    "train": {"weights", "fields"},
    "images": {"train", "fields"},
    "weights": {"fields"},
    **{name: {"ops", "models", "adapt", "train", "images", "weights", "fields"} for name in SLICES},
    "vlm": {"ops", "models", "adapt", "train", "images", "weights", "fields", "connectors"},
}
TOP = {"vis", "measure", "recipes", "cli", "app", "__init__"}  # may import all of the above; nothing imports them
LIBRARIES = {
    "ops": {"torch"},
    "connectors": {"torch"},
    "train": {"torch", "accelerate", "safetensors", "numpy", "tqdm", "yaml", "timm", "wandb"},  # timm.optim; a tracker
    "images": {"PIL", "numpy", "torch", "tqdm", "timm", "sklearn", "datasets"},  # timm.data; the digits; hfds/
}


def imports(path):
    """Modules that a file imports, those under TYPE_CHECKING left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_design(path):
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    own = {name.split(".")[1] for name in imports(path) if name.startswith("secvit.")}
    other = {name.split(".")[0] for name in imports(path)} - {"secvit"} - sys.stdlib_module_names
    if part in TOP:
        assert "cli" not in own - {part} and ("app" not in own - {part} or part == "cli")
    else:
        assert own - {part} <= MAY_IMPORT[part]
        kernels = {"triton"} if path.relative_to(SOURCE).as_posix() == "ops/triton.py" else set()
        assert other - kernels <= LIBRARIES.get(part, other)


def test_import_secvit_loads_no_extra():
    heavy = ["transformers", "accelerate", "matplotlib", "gradio", "faster_coco_eval", "pycocotools", "sklearn", "onnx"]
    code = f"import sys, secvit; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
