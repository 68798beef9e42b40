"""What a run's folder is opened by: data by a path that holds everywhere, the newest weights, and whole ones."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from secvit import runs
from secvit.classification import recipes
from secvit.classification.training import initial_model
from secvit.images.sources import place_of
from secvit.train.checkpoint import complete
from tests.images.make import folder as image_folder

STEPS = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps with a checkpoint after each second, on data that were named by a relative path."""
    root = tmp_path_factory.mktemp("root")
    image_folder(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        runs.train(recipe(STEPS), "images", root / "run", name="classification.folder")
    return root


def recipe(steps):
    tiny = recipes.tiny(recipes.folder())
    loop = replace(
        tiny.loop, epochs=None, steps=steps, batch_size=3, save_every=2, keep_last=2, device="cpu", ema_decay=0.0
    )
    return replace(tiny, loop=loop)


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_on_data_of_a_relative_path_is_scored_from_every_folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = runs.open(trained / "run", device="cpu").evaluate()
    assert scores["data"] == str(trained / "images")
    assert scores["top1"] == json.loads((trained / "run" / "result.json").read_text())["top1"]


def test_data_that_were_moved_are_named_with_what_to_do(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    for place in ("/gone/images", "wds//gone/images/train-{000..003}.tar"):
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": place}))
        with pytest.raises(ValueError, match=r"learned from .*gone/images.*not there now; give --data"):
            runs.open(run, device="cpu").evaluate()


def test_only_names_stay_in_the_place_of_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    here = str(tmp_path)
    assert place_of("digits") == "digits" and place_of("hfds/user/name") == "hfds/user/name"
    assert place_of("hfds/saved") == f"hfds/{here}/saved" and place_of("../x.csv") == f"{tmp_path.parent}/x.csv"
    assert place_of("wds/a/{0..3}.tar") == f"wds/{here}/a/{{0..3}}.tar" == place_of(place_of("wds/a/{0..3}.tar"))


def test_weights_of_an_earlier_stop_do_not_stand_for_newer_checkpoints(run, caplog):
    """A run is stopped, goes on, and is killed: what it left at the stop is old."""
    said = json.loads((run / "result.json").read_text())
    shutil.copy(complete(run)[0] / "model.safetensors", run)
    (run / "result.json").write_text(json.dumps({**said, "steps": 2, "stopped": "interrupted"}))
    found = runs.open(run, device="cpu")
    assert found.path == complete(run)[-1] and "not finished; taking its newest checkpoint" in caplog.text
    with pytest.raises(ValueError, match="weights are of step 2, its newest checkpoint is step_00000004"):
        runs.push(str(run), "someone/name", to=str(run.parent / "out"))
    shutil.rmtree(complete(run)[-1])
    caplog.clear()
    assert runs.open(run, device="cpu").path == run and "not finished; its weights are of step 2" in caplog.text


def test_what_begins_with_a_run_that_was_killed_takes_its_newest_checkpoint(run):
    """As `runs.open` does: its own weights are of a stop before that."""
    result = json.loads((run / "result.json").read_text())
    older, newest = complete(run)
    shutil.copy(older / "model.safetensors", run)
    (run / "result.json").write_text(json.dumps({**result, "steps": 2, "stopped": "interrupted"}))
    chosen = replace(recipe(STEPS).model, init=str(run))
    model = initial_model(replace(recipe(STEPS), model=chosen), runs.open(newest, device="cpu").classes)
    for name, weight in load_file(newest / "model.safetensors").items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("file", ("model.safetensors", "config.yaml"))
def test_an_unfinished_run_is_opened_by_its_newest_whole_checkpoint(run, file, caplog):
    (run / "model.safetensors").unlink()
    older, newest = complete(run)
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)
    found = runs.open(run, device="cpu")
    assert found.path == older and f"{newest / file} is damaged" in caplog.text
    with pytest.raises(ValueError, match=f"{file} is damaged.*give another checkpoint"):
        runs.open(newest, device="cpu")


def test_what_is_pushed_tells_no_paths_and_has_no_exports(run, tmp_path):
    for name in ("model.onnx", "model.onnx.json"):
        (run / name).write_text("{}")
    out = tmp_path / "out"
    runs.push(str(run), "someone/name", to=str(out))
    assert not list(out.glob("*onnx*"))
    assert all(yaml.safe_load((out / name).read_text())["data"] == "images" for name in ("config.yaml", "result.json"))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(runs.open(out, device="cpu").model(x), runs.open(run, device="cpu").model(x))
    with pytest.raises(ValueError, match="'a b' is no repository of the hub; give USER/NAME"):
        runs.push(str(run), "a b", to=str(tmp_path / "other"))
