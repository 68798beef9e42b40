"""benchmarks/check_gpu.py at small sizes on the CPU."""

import json
from dataclasses import replace

import pytest


@pytest.fixture
def check_gpu(benchmarks):
    import check_gpu

    return check_gpu


def rows(folder):
    (file,) = folder.iterdir()
    result = json.loads(file.read_text())
    assert {"versions", "commit", "hardware", "date", "seed", "recipe", "gpu"} <= result.keys()
    return result["rows"]


@pytest.mark.slow
def test_every_family_takes_its_steps(check_gpu, tmp_path, capsys):
    assert check_gpu.main(["--tiny", "--device", "cpu", "--output", str(tmp_path)]) == 0
    found = rows(tmp_path)
    assert {row["recipe"].split(".")[0] for row in found} == {
        "classification", "simmim", "segmentation", "detection", "vlm"
    }  # fmt: skip
    assert all(row["finite"] and row["loss"][0] != row["loss"][-1] for row in found)
    assert capsys.readouterr().out.count("images/s") == len(found)


def test_a_family_that_fails_does_not_stop_the_others(check_gpu, tmp_path, monkeypatch, capsys):
    def fails(recipe, case):
        raise RuntimeError("no such kernel")

    case = check_gpu.TINY[0]
    monkeypatch.setattr(check_gpu, "TINY", [replace(case, build=fails), case])
    assert check_gpu.main(["--tiny", "--device", "cpu", "--output", str(tmp_path)]) == 1
    failed, whole = rows(tmp_path)
    assert failed["error"] == "RuntimeError: no such kernel" and whole["finite"]
    assert "no such kernel" in capsys.readouterr().out


def test_real_sizes_are_refused_without_a_gpu(check_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_gpu.torch.cuda, "is_available", lambda: False)
    assert check_gpu.main(["--output", str(tmp_path)]) == 2
    assert "finds no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        check_gpu.main(["--device", "cpu"])


def test_the_real_cases_are_recipes_at_their_own_sizes(check_gpu):
    from secvit import recipes

    for case in check_gpu.FULL:
        recipe = recipes.find(case.recipe)()
        assert case.batch <= recipe.loop.batch_size
        if getattr(recipe.model, "image_size", None):
            assert case.size == (recipe.model.image_size,) * 2
