"""docs/extending.md: what it prints runs."""

import os
import re
import subprocess
import sys
from types import ModuleType

import pytest
import timm
import torch
from PIL import Image
from timm.models import _registry as registry
from torch import nn

import secvit
from secvit.ops import partition_sizes
from secvit.ops.partitions import SCORES
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMAND = re.search(r"```console\n(.*?)\n```", PAGE, re.DOTALL)[1]


def test_the_blocks_of_the_page_run_one_after_another(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'secvit[vis]'")
    monkeypatch.chdir(tmp_path)
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # where timm registers what the page defines
    monkeypatch.setattr(registry, "_model_entrypoints", dict(registry._model_entrypoints))
    names = vars(page)
    before = dict(SCORES)
    try:
        for block in BLOCKS[:-1]:
            exec(block, names)
    finally:
        SCORES.clear()
        SCORES.update(before)
    plan, secvit = names["plan"], names["secvit"]
    assert plan.sizes.tolist() == [[49] * 4] * 2
    assert plan.labels[0].view(14, 14)[0, 0] == 0 and plan.labels[0].view(14, 14)[-1, -1] == 3
    seeds = secvit.cluster(names["tokens"], 8, partition=names["nearest_seed"])
    assert seeds.sizes[0].tolist() == partition_sizes(196, 8)
    assert names["logits"].shape == (1, 10) and names["features"].shape == (1, 197, 192)
    assert [found.partition for found in (*names["maps"], *names["other"])] == ["diagonal", "window"]
    assert (tmp_path / "diagonal.png").is_file() and (tmp_path / "backbone.png").is_file()


def test_the_command_of_the_page_trains_with_a_name_and_the_run_keeps_it(tmp_path):
    pytest.importorskip("sklearn", reason="sklearn is not installed: pip install 'secvit[dev]'")
    (tmp_path / "rules.py").write_text(BLOCKS[-1])
    python, *words = COMMAND.split(maxsplit=4)
    assert (python, words[0]) == ("python", "rules.py")
    command = f'"{sys.executable}" {" ".join(words)} --tiny'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "partition: diagonal" in (tmp_path / "runs" / "diagonal" / "config.yaml").read_text()


class Attention(nn.Module):
    """By the protocol alone, on maps (B, H, W, C): two heads of which none is ours."""

    num_heads = 2

    def __init__(self):
        super().__init__()
        self.clustering = secvit.Clustering(num_clusters=4)
        self.qkv = nn.Linear(16, 48)

    def heads(self, x):
        return self.qkv(x.flatten(1, 2)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        return secvit.sec_attention(*self.heads(x), plan=self.plan(x)).transpose(1, 2).reshape(x.shape)

    def keys(self, x):
        return secvit.Keys(self.heads(x)[1], x.shape[1:3])

    def plan(self, x):
        return self.clustering.plan(self.keys(x))


class Outside(nn.Module):
    num_classes = 3

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 8, stride=8), nn.Linear(16, 3)
        self.blocks = nn.Sequential(Attention(), Attention())

    def forward(self, x):
        return self.head(self.blocks(self.embed(x).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


@pytest.fixture
def outside():
    name = "a_backbone_from_outside"
    registry._model_entrypoints[name] = lambda pretrained=False, **kwargs: Outside()
    yield name
    del registry._model_entrypoints[name]


def test_a_backbone_from_outside_is_trained_and_drawn(outside, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'secvit[vis]'")
    from secvit.vis import cluster_maps, cluster_photo, grad_cam

    torch.manual_seed(0)
    model = timm.create_model(outside)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    images, labels = torch.randn(6, 3, 48, 64), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = []
    for _ in range(3):
        losses.append(nn.functional.cross_entropy(model(images), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[2] < losses[0]
    maps = cluster_maps(model, images[0], block="all", head="all")
    assert [(m.block, m.head, m.num_clusters, tuple(m.labels.shape)) for m in maps] == [
        (0, 0, 4, (6, 8)), (0, 1, 4, (6, 8)), (1, 0, 4, (6, 8)), (1, 1, 4, (6, 8))
    ]  # fmt: skip
    (first,) = cluster_maps(model, images[0], block=0, head=0)
    tokens = model.embed(images[:1]).permute(0, 2, 3, 1)
    assert torch.equal(first.labels, model.blocks[0].plan(tokens).labels[0, 0].view(6, 8))
    Image.new("RGB", (64, 48), "steelblue").save(tmp_path / "photo.png")
    assert cluster_photo(tmp_path / "photo.png", tmp_path / "drawn.png", run=outside).is_file()
    model.output_fmt = "NHWC"  # as in timm
    assert grad_cam(model, images[0])[0].heat.shape == (6, 8)
