"""A run of each task, through its life: trained, opened, scored to the same figures, asked, drawn, loaded by others."""

import csv
import json
import shutil

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from secvit import runs
from secvit.cli import main
from tests.detection.make import coco_folder
from tests.segmentation.make import mask_folder
from tests.vlm.make import folder as conversations

CPU = ["--tiny", "--loop.device", "cpu", "--loop.steps", "2"]
# what a run of a task is scored by
FIGURES = {
    "classification": ("top1", "macro"), "simmim": ("loss", "mean_baseline"), "segmentation": ("miou", "confusion"),
    "detection": ("box_AP", "mask_AR100"), "vlm": ("loss", "token_accuracy"),
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (50 + 10 * i, 70, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One run of each task, made when it is first asked for."""
    root, known = tmp_path_factory.mktemp("runs"), {}
    data = {
        "classification": lambda: "digits", "simmim": lambda: "digits",
        "detection": lambda: str(coco_folder(root / "boxes")), "segmentation": lambda: str(mask_folder(root / "pixels")),
        "vlm": lambda: str(conversations(root / "talk")),
    }  # fmt: skip
    recipes = {"classification": "digits", "simmim": "digits", "vlm": "small"}

    def run(task):
        if task not in known:
            words = ["train", f"{task}.{recipes.get(task, 'folder')}", *CPU, "--data", data[task]()]
            assert main([*words, "--output", str(root / task)]) == 0
            known[task] = root / task
            shutil.rmtree(root / task / "checkpoints")  # megabytes
        return known[task]

    return run


TASKS = ("classification", "detection", "segmentation", "simmim", "vlm")


@pytest.mark.parametrize("task", TASKS)
def test_a_run_says_what_it_is_and_is_scored_to_the_figures_of_its_training(made, task, capsys):
    run = made(task)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["task"] == task == runs.task_of(run) and config["recipe"].startswith(task)
    assert "secvit.runs" in (run / "README.md").read_text().replace("from secvit import runs", "secvit.runs")
    result = json.loads((run / "result.json").read_text())
    capsys.readouterr()
    assert main(["evaluate", str(run), "--device", "cpu", "--json", str(run / "again.json")]) == 0
    again = json.loads((run / "again.json").read_text())
    for name in FIGURES[task]:
        assert np.asarray(again[name]) == pytest.approx(np.asarray(result[name]), rel=1e-6), name
    assert FIGURES[task][0] in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_photos_are_predicted_and_a_broken_one_stops_no_other(made, task, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    options = {"vlm": ["--max_new_tokens", "2"], "detection": ["--score", "0"]}.get(task, [])
    assert main(["predict", str(made(task)), str(photos), str(broken), "--device", "cpu", *options]) == 2
    said = capsys.readouterr()
    assert f"left out {broken}" in said.err and "Traceback" not in said.err
    assert all(f"{photos / f'{i}.png'}: " in said.out for i in range(3))
    trained = runs.open(made(task), device="cpu")
    assert len(trained.predict([photos / "0.png", Image.open(photos / "1.png")])) == 2
    if task not in ("vlm",):
        assert trained.transform(Image.new("RGB", (40, 30))).shape[0] == 3


def test_the_clusters_of_a_language_model_are_not_those_of_a_network(made, photos, capsys):
    assert main(["cluster", str(made("vlm")), str(photos / "0.png")]) == 2
    assert "is a language model, whose tower has no clusters" in capsys.readouterr().err


@pytest.mark.parametrize("task", ("classification", "detection", "segmentation", "simmim"))
def test_the_clusters_of_the_network_that_was_trained_are_drawn(made, task, photos, tmp_path, capsys):
    words = ["cluster", str(made(task)), str(photos / "0.png"), "-o", str(tmp_path / "c.png"), "--size", "64"]
    assert main(words) == 0
    assert "untrained" not in capsys.readouterr().out and (tmp_path / "c.png").stat().st_size > 1000
    network = runs.open(made(task), device="cpu").clustered()
    trained = runs.open(made(task), device="cpu").model.state_dict()
    stem = next(value for key, value in network.state_dict().items() if key.startswith("stem.0"))
    assert any(value.shape == stem.shape and torch.equal(value, stem) for value in trained.values())


def test_timm_and_transformers_load_a_classifiers_run_with_equal_logits(made):
    from transformers import AutoModelForImageClassification, pipeline

    run = made("classification")
    trained = runs.open(run, device="cpu")
    x = torch.randn(2, 3, 32, 32)
    expected = trained.model(x)
    loaded = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    assert torch.equal(loaded(x), expected) and tuple(loaded.pretrained_cfg["label_names"]) == trained.classes
    theirs = AutoModelForImageClassification.from_pretrained(run).eval()
    assert torch.equal(theirs(x).logits, expected)
    assert tuple(theirs.config.id2label.values()) == trained.classes
    image = Image.new("RGB", (50, 40), (200, 30, 40))
    said = {row["label"]: row["score"] for row in pipeline("image-classification", str(run))(image, top_k=10)}
    assert said == pytest.approx(dict(trained.predict(image, top=10)[0]), rel=1e-5)


def test_a_classifiers_mistakes_are_drawn_and_its_answers_written(made, photos, tmp_path, capsys):
    run = made("classification")
    confusion, wrong = tmp_path / "confusion.png", tmp_path / "wrong.png"
    words = [
        "evaluate",
        str(run),
        "--confusion",
        str(confusion),
        "--wrong",
        str(wrong),
        "--json",
        str(tmp_path / "s.json"),
    ]
    assert main(words) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    matrix = np.array(scores["confusion"])
    assert matrix.sum() == scores["images"] and np.trace(matrix) / matrix.sum() == pytest.approx(scores["top1"])
    shares = np.diag(matrix) / matrix.sum(1)
    assert list(scores["per_class"].values()) == pytest.approx(shares.tolist())
    assert scores["macro"] == pytest.approx(shares.mean())
    assert confusion.stat().st_size > 5000 and wrong.stat().st_size > 5000
    words = ["predict", str(run), str(photos), "--json", str(tmp_path / "p.json"), "--csv", str(tmp_path / "p.csv")]
    assert main([*words, "--top", "2"]) == 0
    found = json.loads((tmp_path / "p.json").read_text())["photos"]
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        [row["photo"] for row in rows]
        == [one["photo"] for one in found]
        == [str(photos / f"{i}.png") for i in range(3)]
    )
    assert rows[0]["class"] == found[0]["classes"][0]["class"]
    assert float(rows[0]["probability_2"]) == pytest.approx(found[0]["classes"][1]["probability"], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "RUN", "--model", "secvit_tiny"], "is a run of secvit_nano, not of secvit_tiny"),
        (["predict", "secvit_nano.clothing10", "PHOTO", "--model", "secvit_tiny"], "is itself the name of a network, and secvit_tiny"),
        (["cluster", "deit_tiny_patch16_224", "PHOTO", "--model", "secvit_tiny"], "is itself the name of a network, and secvit_tiny"),
        (["evaluate", "RUN", "--max_dets", "7"], "--max_dets is no option of secvit evaluate .*; it belongs to runs of detection"),
        (["evaluate", "RUN", "--flip"], "--flip is no option .*; it belongs to runs of segmentation"),
        (["evaluate", "RUN", "--confusoin", "c.png"], "--confusoin is no option .*; did you mean --confusion"),
        (["evaluate", "RUN", "--confusion", "nowhere/c.png"], "no such folder"),
        (["evaluate", "RUN", "--json", "nowhere/c.json"], "no such folder"),
        (["evaluate", "RUN", "--size", "0"], "size=0"),
        (["evaluate", "nowhere"], "nowhere: no such folder or file, and no model 'nowhere'"),
        (["evaluate", "secvit_tiny"], "no weights come with secvit_tiny"),
        (["detect", "RUN", "a.jpg"], "is a run of classification, not of detection"),
        (["predict", "RUN", "a.jpg", "--device", "gpu"], "device 'gpu' is not there"),
        (["evaluate"], "usage: secvit evaluate RUN"),
        (["ask", "RUN", "PHOTO", "what?"], "is a run of classification, not a language model"),
        (["export", "RUN", "--format", "tflite"], "--format: expected one of 'onnx', 'openvino', 'pt2'.*tflite"),
        (["predict", "RUN", "a.jpg", "--top", "two"], "--top: expected int. Got value: two"),
        (["predict", "RUN", "--run", "RUN", "a.jpg"], "two runs; give one"),
    ],
)  # fmt: skip
def test_what_contradicts_a_run_or_does_not_belong_to_it_is_refused(made, photos, words, message, capsys):
    names = {"RUN": str(made("classification")), "PHOTO": str(photos / "0.png")}
    code = main([names.get(word, word) for word in words])
    said = capsys.readouterr()
    assert code == (0 if words == ["evaluate"] else 2)
    import re

    assert re.search(message, said.err + said.out) and "Traceback" not in said.err


def test_words_of_before_are_answered_by_those_of_today(made, photos, capsys):
    run, photo = str(made("classification")), str(photos / "0.png")
    assert main(["predict", run, photo]) == 0
    said = capsys.readouterr().out
    for words in (["predict", photo, "--checkpoint", run], ["predict", photo, f"--weights={run}"]):
        assert main(words) == 0
        found = capsys.readouterr()
        assert found.out == said and "is now RUN" in found.err
    assert main(["evaluate", run, "--batch-size", "100"]) == 0
    scores = capsys.readouterr().out
    assert main(["evaluate", "--model", "secvit_nano", "--checkpoint", run, "--data", "digits"]) == 0
    assert capsys.readouterr().out == scores


def test_a_run_moves_and_an_unfinished_one_is_opened_by_its_newest_checkpoint(made, tmp_path, caplog):
    words = ["train", "classification.digits", "--tiny", "--loop.device", "cpu", "--output", str(tmp_path / "a")]
    assert main(words) == 0
    shutil.move(tmp_path / "a", tmp_path / "b")
    x = torch.randn(1, 3, 32, 32)
    expected = runs.open(tmp_path / "b", device="cpu").model(x)
    for name in ("model.safetensors", "result.json", "config.json"):
        (tmp_path / "b" / name).unlink()
    found = runs.open(tmp_path / "b", device="cpu")
    assert "not finished; taking its newest checkpoint, step_00000004" in caplog.text
    assert torch.equal(found.model(x), expected)


def test_a_run_is_pushed_as_timm_loads_it(made, tmp_path, capsys):
    run = made("classification")
    assert main(["push", str(run), "someone/name", "--to", str(tmp_path / "out")]) == 0
    assert {"config.json", "model.safetensors", "README.md", "config.yaml"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    x = torch.randn(1, 3, 32, 32)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(loaded(x), runs.open(run, device="cpu").model(x))
    assert main(["push", str(run), "someone/name", "--to", str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err


def patched_vit(folder):
    """A run of a ViT of two blocks."""
    words = ["--model.name", "vit_tiny_patch16_224", "--model.patch", "{num_clusters: 2}", "--model.image_size", "32"]
    words += ["--model.args", "{img_size: 32, depth: 2, num_heads: 2, embed_dim: 32}", "--output", str(folder / "run")]
    assert main(["train", "classification.digits", *CPU, *words]) == 0
    return folder / "run"


def test_a_patched_vit_keeps_its_patch(tmp_path):
    patched_vit(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    trained = runs.open(tmp_path / "run", device="cpu")
    assert trained.model.secvit_patch.clustering.num_clusters == 2
    loaded = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    torch.testing.assert_close(loaded(x), trained.model(x), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("task", ("classification", "segmentation"))
def test_a_run_is_exported_and_gives_the_same_logits_in_its_runtime(made, task, photos, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "secvit[export]"')
    run, file = made(task), tmp_path / "net.onnx"
    if task == "classification":  # a smaller network takes the same way, and exporters take minutes for a large one
        run = patched_vit(tmp_path)
    assert main(["export", str(run), "--output", str(file), "--device", "cpu", "--photos", str(photos)]) == 0
    assert f"wrote {file}" in capsys.readouterr().out
    facts = json.loads((tmp_path / "net.onnx.json").read_text())
    trained = runs.open(run, device="cpu")
    assert tuple(facts["output"]["classes"]) == trained.classes
    x = torch.randn(2, 3, facts["input"]["height"], facts["input"]["width"])
    (logits,) = onnxruntime.InferenceSession(file).run(None, {"images": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), trained.model(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "reason"), [("detection", "non-maximum suppression"), ("simmim", "train one on it"), ("vlm", "vLLM serve")]
)
def test_what_cannot_be_exported_says_why(made, task, reason, tmp_path, capsys):
    assert main(["export", str(made(task)), "--output", str(tmp_path / "net.onnx"), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert reason in said and "Traceback" not in said and not list(tmp_path.iterdir())
