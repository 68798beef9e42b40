"""A small run to look at, and the page in a process of its own, with all its folders in one place."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
import yaml
from safetensors.torch import save_file

import secvit  # noqa: F401  registers the networks
from tests.conftest import ROOT

SMALL = {
    "secvit_nano": {
        "depths": [1, 1, 1, 1],
        "embed_dims": [16, 32, 48, 64],
        "num_heads": [2, 4, 6, 8],
        "head_hidden_size": 32,
    },
    "sec_deit_small": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32},
    "vit_small_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64},
}
CLASSES = ["cat", "dog", "bird"]


def make_run(folder: Path, name: str = "secvit_nano", **more) -> str:
    """Random weights of a small network, saved as a run of three classes."""
    torch.manual_seed(0)
    folder.mkdir()
    network = timm.create_model(name, num_classes=len(CLASSES), **SMALL[name])
    save_file(network.state_dict(), folder / "model.safetensors")
    model = {"name": name, "args": SMALL[name], "image_size": SMALL[name].get("img_size", 32), **more}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "classes": CLASSES}))
    return str(folder)


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Site(str):
    """Address of a page, with its process."""

    def __new__(cls, address: str, server: subprocess.Popen):
        site = super().__new__(cls, address)
        site.server = server
        return site


@contextmanager
def serving(folder: Path, **options):
    """Address of `serve(**options)` in another process, which sees home, temporary and working folders inside `folder`."""
    inside = {name: folder / name for name in ("home", "tmp", "cwd")}
    for path in inside.values():
        path.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "HOME": str(inside["home"]),
        "TMPDIR": str(inside["tmp"]),
        "PYTHONPATH": str(ROOT / "src"),
    }
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "GRADIO_TEMP_DIR", "HF_HOME"):
        environment.pop(name, None)
    words = "import json, sys; from secvit.app import serve; serve(**json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", words, json.dumps(options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=inside["cwd"], env=environment, **pipes) as server:
        try:
            said = []
            for line in server.stdout:
                said.append(line)
                if line.startswith("secvit app: http"):
                    break
            else:
                raise RuntimeError("".join(said))
            yield Site(line.split()[2], server)
        finally:
            server.terminate()
            server.communicate(timeout=60)
