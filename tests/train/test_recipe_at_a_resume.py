"""What a recipe changes before a resume is used, or refused: never written down alone."""

import pytest
import torch
import yaml
from torch import nn

from secvit.train import Schedule, fit, latest
from secvit.train.optim import Optim, create_optimizer
from tests.train.small import Data, Net, Task, loop, run


def go(output, steps, optimizer=torch.optim.AdamW, freeze=(), settings=None, task=None, **options):
    torch.manual_seed(0)
    task = task or Task(Net())
    for name, parameter in task.named_parameters():
        parameter.requires_grad_(name not in freeze)
    chosen = optimizer([p for p in task.parameters() if p.requires_grad], **{"lr": 0.01, **options})
    fit(
        task,
        chosen,
        Data(),
        settings or loop(steps=steps),
        Schedule(kind="constant"),
        output,
        config={"optim": options},
    )
    return task, chosen


def test_new_weight_decay_and_betas_are_used(tmp_path):
    """As by a hand-made optimizer that is given the old one's memory."""
    go(tmp_path / "a", 4, weight_decay=0.05, betas=(0.9, 0.999))
    task, optimizer = go(tmp_path / "a", 8, weight_decay=0.9, betas=(0.5, 0.6))
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.9, (0.5, 0.6))
    said = yaml.safe_load((latest(tmp_path / "a") / "config.yaml").read_text())["optim"]
    assert said == {"weight_decay": 0.9, "betas": [0.5, 0.6]}
    other, _ = go(tmp_path / "b", 8, weight_decay=0.05, betas=(0.9, 0.999))
    assert not torch.equal(task.model.a.weight, other.model.a.weight)
    assert optimizer.state[task.model.a.weight]["step"] == 8


def test_unchanged_options_resume_to_the_bit(tmp_path):
    whole, _ = go(tmp_path / "whole", 8, weight_decay=0.05)
    go(tmp_path / "cut", 4, weight_decay=0.05)
    cut, _ = go(tmp_path / "cut", 8, weight_decay=0.05)
    assert all(map(torch.equal, whole.state_dict().values(), cut.state_dict().values()))


class Blocks(nn.Module):
    """What timm's layer decay knows how to cut."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Linear(6, 6), nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in (self.stem, *self.blocks):
            x = block(x).relu()
        return self.head(x)

    def group_matcher(self, coarse=False):
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^head", (99999,))]}


def decayed(output, steps, **optim):
    torch.manual_seed(0)
    task = Task(Blocks())
    del task.scale
    task.scale = 1.0
    optimizer = create_optimizer(task.model, Optim(lr=0.01, **optim))
    fit(task, optimizer, Data(), loop(steps=steps), Schedule(kind="constant"), output)
    return task, optimizer


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_layer_decay_that_comes_in_later_cuts_the_groups_anew_and_keeps_each_weights_memory(tmp_path, name):
    decayed(tmp_path, 4, name=name)
    task, optimizer = decayed(tmp_path, 6, name=name, layer_decay=0.5, weight_decay=0.3)
    scales = {p: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert len(optimizer.param_groups) > 2 and scales[task.model.stem.weight] < scales[task.model.head.weight] == 1
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.3}
    saved = torch.load(tmp_path / "checkpoints/step_00000004/state.pt", weights_only=True)
    where = {
        n: i
        for names, g in zip(saved["learns"]["weights"], saved["optimizer"]["param_groups"])
        for n, i in zip(names, g["params"])
    }
    assert len(where) == len(list(task.parameters()))
    for weight, state in optimizer.state.items():
        assert state["exp_avg"].shape == weight.shape
    if name == "lamb":  # keeps its step in its groups
        assert {float(g["step"]) for g in optimizer.param_groups} == {6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": torch.optim.SGD}, "holds the state of AdamW, the recipe wants SGD"),
        ({"amsgrad": True}, "had amsgrad=False, the recipe wants True"),
        ({"freeze": ("model.a.weight",)}, r"1 weights are frozen now that learned \(model.a.weight\)"),
        ({"settings": loop(steps=8, precision="fp16")}, "no loss scale"),
    ],
)
def test_what_an_optimizer_cannot_take_over_is_refused_with_the_remedy(tmp_path, change, message):
    go(tmp_path, 4)
    with pytest.raises(ValueError, match=message + ".*another --output"):
        go(tmp_path, 8, **change)


def test_thawed_weights_are_refused(tmp_path):
    go(tmp_path, 4, freeze=("model.a.weight", "model.a.bias"))
    with pytest.raises(ValueError, match=r"2 weights learn now that were frozen \(model.a.weight, model.a.bias\)"):
        go(tmp_path, 8)


def test_momentum_of_a_run_without_is_refused(tmp_path):
    go(tmp_path, 4, torch.optim.RMSprop)
    with pytest.raises(ValueError, match=r"had momentum=0, the recipe wants 0.9"):
        go(tmp_path, 8, torch.optim.RMSprop, momentum=0.9)


def test_a_checkpoint_of_an_earlier_version_gets_the_new_options_too(tmp_path):
    go(tmp_path, 4, weight_decay=0.05)
    folder = latest(tmp_path)
    as_before(folder)
    _, optimizer = go(tmp_path, 8, weight_decay=0.9)
    assert optimizer.param_groups[0]["weight_decay"] == 0.9


def test_another_optimizer_is_refused_for_a_checkpoint_of_an_earlier_version(tmp_path):
    go(tmp_path, 4)
    as_before(latest(tmp_path))
    with pytest.raises(ValueError, match="without dampening, the recipe wants SGD"):
        go(tmp_path, 8, torch.optim.SGD)


def as_before(folder):
    """What checkpoints held before they had manifests."""
    (folder / "manifest.json").unlink()
    state = torch.load(folder / "state.pt", weights_only=True)
    for key in ("run", "origin", "data", "learns"):
        del state[key]
    torch.save(state, folder / "state.pt")


def test_weights_to_begin_with_are_refused_once_a_run_began(tmp_path):
    run(tmp_path, loop(steps=2), config={"model": {"init": None}})
    with pytest.raises(ValueError, match=r"model.init was None, is runs/other, but a resumed run keeps its weights"):
        run(tmp_path, loop(steps=4), config={"model": {"init": "runs/other"}})


def test_weights_beside_the_model_are_compared_too(tmp_path):
    run(tmp_path, loop(steps=2))
    task = Task(Net())
    task.scale = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"does not fit Task: 1 of another shape \(scale"):
        run(tmp_path, task=task)


def test_a_finished_run_does_not_write_down_a_recipe_that_it_did_not_use(tmp_path):
    recipe = {"optim": {"lr": 0.01}, "loop": {"workers": 0}}
    run(tmp_path, loop(steps=2), config=recipe)
    with pytest.raises(
        ValueError, match=r"finished, and optim.lr was 0.01, is 0.5 would not be used; give more --loop.steps"
    ):
        run(tmp_path, loop(steps=2), config={**recipe, "optim": {"lr": 0.5}})
    assert run(tmp_path, loop(steps=2), config={**recipe, "loop": {"workers": 2}})[1].step == 2
    assert run(tmp_path, loop(steps=4), config={**recipe, "optim": {"lr": 0.5}})[1].step == 4
