import csv
import logging
import os

import pytest
import torch
from torch import nn

from secvit.train import Loop, Schedule, learning_rate
from secvit.train.sampler import Keys
from tests.train.small import Data, Net, Task, loop, run


class Quiet(Net):
    """Without batch norm and dropout, so that the size of a forward does not matter."""

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_batch_of_four_equals_its_halves_and_quarters(tmp_path):
    weights = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        settings = loop(batch_size=4, parts=parts, clip_grad=0.5)
        run(tmp_path / str(parts), settings, task=(task := Task(Quiet())))
        weights.append(torch.cat([p.flatten() for p in task.parameters()]).detach())
    # float32 sums in another order, 20 Adam steps
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights[2], weights[0], atol=1e-6, rtol=1e-5)


def test_every_epoch_sees_every_sample_once_in_its_own_order():
    keys = [k for part in Keys(12, 4, seed=3, start=0, stop=6) for k in part]
    first, second = keys[:12], keys[12:]
    assert sorted(first) == list(range(12)) and sorted(k % 12 for k in second) == list(range(12))
    assert [k % 12 for k in second] != first and len(set(keys)) == 24


def test_sampler_starts_anywhere_in_the_same_order():
    whole = list(Keys(50, 8, seed=0, start=0, stop=30, parts=2))
    assert len(whole) == 60
    for start in (1, 5, 6, 7, 29):
        assert list(Keys(50, 8, seed=0, start=start, stop=30, parts=2)) == whole[2 * start :]


def test_processes_share_each_batch():
    one = list(Keys(50, 8, seed=0, start=0, stop=9))
    parts = [list(Keys(50, 8, seed=0, start=0, stop=9, rank=r, processes=2)) for r in (0, 1)]
    for step, batch in enumerate(one):
        assert sorted(parts[0][step] + parts[1][step]) == sorted(batch)


def test_repeats_draw_each_sample_with_different_keys():
    keys = [k for part in Keys(12, 12, seed=0, start=0, stop=1, repeats=3) for k in part]
    assert len(set(keys)) == 12 and len({k % 12 for k in keys}) == 4


def test_schedule_is_deits():
    schedule = Schedule(warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    rate = [learning_rate(s, 300, 2e-3, schedule, 1) for s in range(301)]
    assert rate[0] == 1e-6 and rate[300] == pytest.approx(1e-5)
    assert rate[4] == pytest.approx(1e-6 + 4 / 5 * (2e-3 - 1e-6))
    assert rate[150] == pytest.approx((2e-3 + 1e-5) / 2)


def test_layer_decay_scales_the_learning_rate(tmp_path):
    task = Task(Net())
    groups = [
        {"params": [*task.model.a.parameters()], "lr_scale": 0.5},
        {"params": [*task.model.b.parameters()]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    from secvit.train import fit

    fit(task, optimizer, Data(), loop(steps=3), Schedule(kind="constant"), tmp_path)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.1]


class Poison(nn.Module):
    def __init__(self, net, at):
        super().__init__()
        self.inner, self.at, self.calls = net, at, 0

    def forward(self, x):
        self.calls += 1
        return self.inner(torch.full_like(x, float("nan")) if self.calls in self.at else x)


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_nonfinite_step_is_skipped_counted_and_named(tmp_path, caplog, kind):
    class BadSample(Data):
        def __getitem__(self, key):
            sample = super().__getitem__(key)
            if key == 3:
                sample["x"] = torch.full((6,), float(kind))
            return sample

    with caplog.at_level(logging.WARNING):
        task, result = run(tmp_path, data=BadSample())
    assert result.nonfinite == 1 and "the batch itself" in caplog.text
    assert all(t.isfinite().all() for t in task.state_dict().values())
    assert all(t.isfinite().all() for t in result.model.state_dict().values())


def test_first_bad_layer_is_named(tmp_path, caplog):
    class Bad(Net):
        def __init__(self):
            super().__init__()
            self.odd = nn.Identity()
            self.odd.register_forward_hook(lambda m, i, o: o / 0 if self.training else o)

        def forward(self, x):
            return self.b(self.odd(self.a(x)))

    with pytest.raises(FloatingPointError, match=r"first in the output of model.odd \(Identity\)"):
        run(tmp_path, loop(max_nonfinite=2), task=Task(Bad()))
    assert len([r for r in caplog.records if "step skipped" in r.message]) == 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(tmp_path, precision):
    task, _ = run(tmp_path, loop(precision=precision, steps=100))
    with open(tmp_path / "log.csv") as file:
        losses = [float(r["loss"]) for r in csv.DictReader(file)]
    assert losses[-1] < 0.8 * losses[0] and next(task.parameters()).dtype == torch.float32


@pytest.mark.skipif(os.name == "nt", reason="folder permissions of POSIX")
def test_unwritable_output_fails_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another output folder"):
        run(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1, "steps": 1}, "exactly one"),
        ({}, "exactly one"),
        ({"steps": 0}, "steps=0; give a whole number >= 1"),
        ({"epochs": 0}, "epochs=0; give a number > 0"),
        ({"steps": 1, "batch_size": 0}, "batch_size=0"),
        ({"steps": 1, "ema_decay": 1.0}, "ema_decay=1.0"),
        ({"steps": 1, "workers": -1}, "workers=-1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Loop(**settings)


def test_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="choose batch_size <= 50"):
        run(tmp_path, loop(batch_size=64))


def test_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="choose a multiple of 3"):
        run(tmp_path, loop(parts=3))


def test_averages_with_a_warm_up_forget_where_they_began():
    from secvit.train.ema import Ema

    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 100.0)
    slow, quick = Ema(net, 0.999), Ema(net, 0.999, warmup=True)
    nn.init.constant_(net.weight, 1.0)
    for step in range(200):
        slow.update(net, step)
        quick.update(net, step)
    assert slow.model.weight.item() > 80 and quick.model.weight.item() < 1.001


def test_sharding_refuses_what_it_cannot_do():
    for more in ({"precision": "fp16"}, {"compile": True}):
        with pytest.raises(ValueError, match="sharding='fsdp'"):
            loop(sharding="fsdp", **more)
