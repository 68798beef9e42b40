import os
import pickle
import textwrap
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from secvit.train import latest
from secvit.train.checkpoint import complete, save_checkpoint
from secvit.weights import load_weights, read_weights, weight_bytes
from tests import fresh
from tests.train.small import Net, loop, run


def save(output, step, net=None):
    return save_checkpoint(output, step, net or Net(), None, {"step": step}, {"a": (1, 2)}, {})


ROOT = Path(__file__).parents[2]

KILLED = """
    import os, sys, time
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from secvit.train import checkpoint
    from tests.train.test_checkpoint import save
    output = Path({output!r})
    save(output, 1)
    real, calls = os.fsync, 0
    def slow(handle):
        global calls
        calls += 1
        if calls == {at}:
            (output / "inside").write_text("")
            time.sleep(60)
        real(handle)
    os.fsync = slow
    save(output, 2)
"""


@pytest.mark.parametrize("at", [1, 3, 5])
def test_kill_in_the_middle_of_a_save_leaves_the_previous_one(tmp_path, at):
    code = textwrap.dedent(KILLED.format(root=str(ROOT), output=str(tmp_path), at=at))
    with fresh.Running(["-c", code]) as running:
        deadline = time.monotonic() + 60
        while not (tmp_path / "inside").exists():
            assert running.poll() is None and time.monotonic() < deadline, running.written()
            time.sleep(0.02)
    assert (tmp_path / "checkpoints/step_00000002.tmp").exists()
    assert latest(tmp_path).name == "step_00000001"
    load_weights(Net(), latest(tmp_path))
    save(tmp_path, 3)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000001",
        "step_00000003",
    ]


def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_checkpoint_holds_weights_under_the_models_own_names(tmp_path):
    task, _ = run(tmp_path, loop(steps=3), config={"lr": 1.0, "betas": (0.9, 0.999)})
    folder = latest(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        *("config.yaml", "ema.safetensors", "manifest.json", "model.safetensors", "provenance.json", "state.pt")
    ]
    found = load_file(folder / "model.safetensors")
    assert found.keys() == Net().state_dict().keys()
    assert torch.equal(found["a.weight"], task.model.a.weight)
    assert yaml.safe_load((folder / "config.yaml").read_text())["betas"] == [0.9, 0.999]
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["step"] == 3 and "scale" in state["task"]


def test_timm_loads_the_weights(tmp_path):
    model = timm.create_model("test_vit", num_classes=7)
    path = tmp_path / "model.safetensors"
    path.write_bytes(weight_bytes(model.state_dict()))
    loaded = timm.create_model("test_vit", num_classes=7, checkpoint_path=str(path))
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))


def test_weights_of_another_class_count_are_reported(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(weight_bytes(timm.create_model("test_vit", num_classes=7).state_dict()))
    with pytest.raises(ValueError, match=r"2 of another shape \(head.weight \(7, .* same number of classes"):
        load_weights(timm.create_model("test_vit", num_classes=8), path)


def test_weights_of_another_model_are_reported_in_short(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(weight_bytes(timm.create_model("test_vit", num_classes=7).state_dict()))
    with pytest.raises(ValueError, match=r"missing .* and \d+ more.*unexpected") as error:
        load_weights(timm.create_model("test_resnet", num_classes=7), path)
    assert len(str(error.value)) < 600


class Code:
    def __reduce__(self):
        return (os.system, ("touch /tmp/owned",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("code.pth", pickle.dumps(Code())),
        ("short.pth", b"\x80\x02"),
        ("empty.pth", b""),
        ("noise.safetensors", b"\xff" * 100),
        ("empty.safetensors", b""),
        ("list.pth", None),
        ("folder", None),
    ],
)
def test_damaged_or_dangerous_files_are_refused(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "list.pth":
        torch.save([1, 2], path)
    with pytest.raises(ValueError, match=name):
        read_weights(path)


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
def test_plain_pickles_of_tensors_load(tmp_path, wrap):
    net = Net()
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save({wrap: state} if wrap else state, tmp_path / "w.pth")
    load_weights(Net(), tmp_path / "w.pth")


def test_unfinished_and_foreign_folders_are_no_checkpoints(tmp_path):
    for name in ("step_00000009.tmp", "step_x", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert complete(tmp_path) == [] and latest(tmp_path) is None
