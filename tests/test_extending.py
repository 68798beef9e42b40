"""docs/extending.md: what it prints runs."""

import json
import re
import shlex
import sys
import types
from dataclasses import dataclass
from types import ModuleType

import pytest
import timm
import torch
from PIL import Image
from timm.models import _registry as registry
from torch import nn

import secvit
from secvit import cli, connectors, recipe_options, recipes, runs
from secvit.images import register_layout, sources
from secvit.ops import partition_sizes
from secvit.ops.partitions import SCORES
from secvit.recipe_options import overview
from secvit.registry import Registry
from tests import fresh
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
    registries = (
        SCORES,
        connectors.CONNECTORS,
        sources.LAYOUTS,
        recipes.ADDED,
        recipes.TASKS,
        runs.KINDS,
        runs.PREPARED,
    )
    before = [dict(one) for one in registries]
    try:
        for block in BLOCKS[:-1]:
            exec(block, names)
        assert names["opened"].evaluate() == {"top1": names["result"]["top1"]}
        assert_the_command_knows_them(tmp_path)
    finally:
        for one, there in zip(registries, before, strict=True):
            one.clear()
            one.update(there)
    plan, secvit = names["plan"], names["secvit"]
    assert plan.sizes.tolist() == [[49] * 4] * 2
    assert plan.labels[0].view(14, 14)[0, 0] == 0 and plan.labels[0].view(14, 14)[-1, -1] == 3
    seeds = secvit.cluster(names["tokens"], 8, partition=names["nearest_seed"])
    assert seeds.sizes[0].tolist() == partition_sizes(196, 8)
    assert names["logits"].shape == (1, 10) and names["features"].shape == (1, 197, 192)
    assert [found.partition for found in (*names["maps"], *names["other"])] == ["diagonal", "window"]
    assert (tmp_path / "diagonal.png").is_file() and (tmp_path / "backbone.png").is_file()
    tokens = torch.randn(2, 576, 32)
    out, merged = names["connector"](tokens, return_merged=True)
    assert out.shape == (2, 37, 64) and merged.weights.shape == (2, 36, 576)
    assert {*names["opened"].predict(["flowers/rose_0.png"])} <= {0, 1, 2, 3}


def assert_the_command_knows_them(folder):
    """Options, help, a resumed run and its evaluation for a recipe and a task from outside."""
    assert "flowers\n      Flowers at 96 px" in overview() and "turns\n      By how many quarters" in overview()
    words = [
        "turns",
        "--data",
        "by_name/flowers",
        "--output",
        "turned",
        "--loop.steps",
        "2",
        "--loop.batch_size",
        "6",
    ]
    assert cli.run("train", words) == 0  # goes on with the run of the page, which is finished
    assert cli.run("evaluate", ["turned", "--json", "scores.json"]) == 0
    scored = json.loads((folder / "scores.json").read_text())["top1"]
    assert scored == json.loads((folder / "turned" / "result.json").read_text())["top1"]
    assert cli.run("train", ["turns", "--tiny", "--data", "by_name/flowers"]) == 2
    assert recipe_options.read(["flowers", "--data", "by_name/flowers", "--loop.epochs", "3"]).recipe.loop.epochs == 3


@pytest.mark.parametrize("add, name, thing, reason", [
    (connectors.CONNECTORS.add, "sec", connectors.Connector, "sec is a built-in connector"),
    (connectors.CONNECTORS.add, "a b", connectors.Connector, "'a b' is no name"),
    (lambda _, thing: connectors.register(thing), "", dict, "give a class derived from Connector"),
    (recipes.register, "classification.folder", lambda: 1, "built-in recipe"),
    (recipes.register, "mine", lambda size: size, "without arguments"),
    (register_layout, "hfds", dict, "built-in layout"),
    (lambda name, thing: runs.register_task(name, thing, print, runs.Trained), "mine", dict, "give a dataclass"),
    (lambda name, thing: runs.register_task(name, thing, print, runs.Trained), "mine", secvit.Plan, "has no loop"),
])  # fmt: skip
def test_what_cannot_be_added_is_refused_with_the_reason(add, name, thing, reason):
    with pytest.raises(ValueError, match=reason):
        add(name, thing)


def test_a_recipe_of_a_task_of_ones_own_may_have_a_model_entry_of_any_kind(monkeypatch):
    @dataclass(frozen=True)
    class Depth:
        model: str = "mine"

    monkeypatch.setitem(recipes.TASKS, "depth", Depth)
    changed = Depth("other")
    assert recipes.task_of(changed) == "depth" and recipes.adjusted(Depth(), changed, {"model"}) is changed


def test_a_name_belongs_to_one_thing_and_the_same_thing_made_again_replaces_it():
    registry = Registry("thing", "add")

    def one():
        return 1

    first = registry.add("mine", one)
    again = types.FunctionType(one.__code__, {}, "one")
    again.__qualname__, again.__module__ = one.__qualname__, one.__module__
    assert registry.add("mine", again) is again is not first
    with pytest.raises(ValueError, match=r"one is called mine; choose another name"):
        registry.add("mine", len)
    with pytest.raises(ValueError, match=r"no thing 'mind'; choose one of mine \(near it: mine\)"):
        registry.named("mind")


def test_the_command_of_the_page_trains_with_a_name_and_the_run_keeps_it(tmp_path):
    pytest.importorskip("sklearn", reason="sklearn is not installed: pip install 'secvit[dev]'")
    (tmp_path / "rules.py").write_text(BLOCKS[-1])
    python, *words = COMMAND.split(maxsplit=4)
    assert (python, words[0]) == ("python", "rules.py")
    done = fresh.run([*shlex.split(" ".join(words)), "--tiny"], cwd=tmp_path)
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
