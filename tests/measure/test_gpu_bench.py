"""The run on a GPU, as far as a CPU can follow it: its whole path, tiny, in triton's interpreter."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"
pytest.importorskip("triton", reason="no triton: pip install triton")


@pytest.fixture
def gpu(monkeypatch):
    if not SCRIPT.is_file():
        pytest.skip("no benchmarks/ beside the tests")
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("gpu_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_tiny_run_goes_all_the_way(tmp_path, gpu):
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "src"), "OUT": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert {"versions", "commit", "hardware", "date", "seed", "recipe", "clock"} <= result.keys()
    assert not result["errors"] and not result["not_run"]
    assert {row["dtype"] for row in result["checks"]} == {"float32", "float16", "bfloat16"}
    assert [row["training"] for row in result["kernels"]] == [False, True]
    assert [row["training"] for row in result["near_far"]] == [False, True]
    assert not any(row["red"] for row in result["near_far"]) and "### Near and far" in done.stdout
    for row in result["kernels"]:
        assert {"fused", "gather + SDPA", "grouped SDPA", "global SDPA"} <= row["seconds"].keys()
    assert [found["mode"] for found in result["models"]] == ["inference", "training"]
    for found in result["models"]:
        assert {"secvit_nano", "literal secvit_nano", "secvit_nano, gather + SDPA"} == {
            r["name"] for r in found["rows"]
        }
    assert gpu.report(result) in done.stdout
    assert "its figures nothing" in done.stdout
    goals = importlib.import_module("gpu_report").goals
    assert goals(result) == goals(None) and goals(None).count("not run") == 8
    for row in result["kernels"]:
        row["length"] = 3136
    for batch, found in zip((256, 64), result["models"], strict=True):
        found["batch"] = batch
        found["rows"] = [row | {"name": row["name"].replace("nano", "tiny")} for row in found["rows"]]
    assert goals(result).count("not run") == 4  # what is compiled, and near and far


def test_no_speed_of_a_kernel_that_is_wrong(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "interleave", lambda *args: pytest.fail("timed"))
    monkeypatch.setattr(gpu, "_fused_and_gathered", lambda packed, num_clusters: [0.0, float("nan")])
    run = gpu.Run(gpu.TINY, 1, None)
    run.result["checks"].append({"name": "a check", "dtype": "bfloat16", "dim": 16, "red": False})
    gpu.time_kernels(run, 16, 1, False)
    assert run.result["kernels"][0]["red"] and "seconds" not in run.result["kernels"][0]
    monkeypatch.setattr(gpu, "_fused_and_gathered", lambda packed, num_clusters: [0.0, 0.0])
    run.result["checks"][0]["red"] = True
    gpu.time_kernels(run, 16, 1, False)
    assert len(run.red) == 3
    assert "red: 3" in gpu.report(run.result)


def test_a_step_that_fails_or_comes_too_late_is_named_and_stops_no_other(gpu, tmp_path):
    def broken(run):
        raise RuntimeError("out of memory")

    run = gpu.Run(gpu.TINY, 1, tmp_path / "result.json")
    run.step("first", broken)
    run.deadline = 0
    run.step("second", broken)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["errors"] == ["first: RuntimeError: out of memory"]
    assert result["not_run"] == ["second: no time left"]
    assert "out of memory" in gpu.report(result) and "no time left" in gpu.report(result)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_without_a_gpu_it_says_what_it_needs(gpu, capsys, tmp_path):
    assert gpu.main(["--output", str(tmp_path)]) == 2
    assert "needs an NVIDIA GPU, or TRITON_INTERPRET=1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
