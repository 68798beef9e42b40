import json
import platform
import time

import pytest
import timm
import torch

import secvit.ops.attention as attention
from secvit.measure import bench, speed
from secvit.measure.parts import PARTS, forward_parts, timed_parts
from secvit.measure.report import report
from tests.measure.literal import LITERAL, literal_module

SMALL = {"batch_size": 2, "image_size": 32, "rounds": 1}
ONLY_INFERENCE = {
    "dtypes": ["float32"], "training": False, "parts": False, "operation": False, "attention": False, "progress": False,
}  # fmt: skip


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_setting_gives_a_ratio_to_the_base_and_to_the_twin(mode, dtype):
    found = speed.bench_models(["secvit_nano"], mode=mode, dtype=dtype, literal=literal_module(), **SMALL)
    rows = {row["name"]: row for row in found["rows"]}
    fused = {"fused secvit_nano"} if mode == "inference" else set()
    assert rows.keys() == {"secvit_nano", "literal secvit_nano", "secvit_nano (again)", *fused}
    assert all(rows[name]["vs_literal"]["median"] > 0 for name in fused)
    assert rows["secvit_nano"]["vs_literal"]["median"] > 0
    assert rows["secvit_nano"]["vs_base"]["median"] == 1
    assert ("of_matrix_rate" in rows["secvit_nano"]) == (mode == "inference")


def test_no_speed_is_given_while_outputs_differ(tmp_path, monkeypatch):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(LITERAL.read_text().replace("D**-0.5", "D**-0.4") if LITERAL.is_file() else "")
    literal_module()
    monkeypatch.setattr(speed, "interleave", lambda *args, **kwargs: pytest.fail("timed"))
    with pytest.raises(ArithmeticError, match="no speed is given while outputs differ"):
        speed.bench_models(["secvit_nano"], literal=speed.load_literal(wrong), **SMALL)


THEIRS = """
import timm
import torch
from secvit.models.convert import from_authors, heads_of, to_authors

class Theirs(torch.nn.Module):
    # weights under the authors' names, as their own network has them
    def __init__(self):
        super().__init__()
        self.inner = timm.create_model("secvit_nano")

    def state_dict(self):
        return to_authors(self.inner.state_dict(), heads_of(self.inner))

    def load_state_dict(self, state):
        return self.inner.load_state_dict(from_authors(state, heads_of(self.inner)))

    def forward(self, x):
        return self.inner(x)

def KClusterFormerSimpleNew_N():
    return Theirs()
"""


def test_the_authors_file_is_a_twin_as_it_is(tmp_path):
    (tmp_path / "SecViT.py").write_text(THEIRS)
    module = speed.load_literal(tmp_path / "SecViT.py")
    model = speed.build("secvit_nano", 32)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(module.like(model)(x), model(x))
    with pytest.raises(ValueError, match="no network of this one's shape, only KClusterFormerSimpleNew_N"):
        module.like(speed.build("secvit_tiny", 32))
    (tmp_path / "other.py").write_text("")
    with pytest.raises(ValueError, match="neither a function like"):
        speed.load_literal(tmp_path / "other.py")


def test_no_speed_is_given_while_fusing_changes_the_function(monkeypatch):
    monkeypatch.setattr(speed.SECViT, "fuse", lambda model: torch.nn.Sequential(model, torch.nn.Softmax(-1)).eval())
    monkeypatch.setattr(speed, "interleave", lambda *args, **kwargs: pytest.fail("timed"))
    with pytest.raises(ArithmeticError, match="fused differs"):
        speed.bench_models(["secvit_nano"], **SMALL)


def test_without_the_literal_file_its_row_is_left_out_and_said_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = bench.run(["secvit_nano"], **ONLY_INFERENCE, **SMALL)
    assert "no literal twins" in report(result)
    assert not any(row["name"].startswith("literal") for row in result["models"][0]["rows"])
    with pytest.raises(ValueError, match="nowhere.py: no such file"):
        bench.run(["secvit_nano"], literal="nowhere.py")


def test_without_a_compiler_compiled_models_are_skipped_visibly(monkeypatch):
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    result = bench.run(["secvit_nano"], compiled=True, **ONLY_INFERENCE, **SMALL)
    assert "no C++ compiler" in report(result)
    assert not any(found["compiled"] for found in result["models"])


def test_compiling_stops_at_its_time_limit_visibly(monkeypatch):
    def slow(name, call, *rest):
        time.sleep(0.01)
        return call

    monkeypatch.setattr(speed, "compile_call", slow)
    found = speed.bench_models(["secvit_nano", "resnet18"], compiled=True, compile_seconds=0.001, **SMALL)
    assert "had gone into compiling" in found["skipped"]["resnet18"]
    assert [row["name"] for row in found["rows"]] == ["secvit_nano", "secvit_nano (again)"]


def test_a_run_writes_what_its_tables_show(tmp_path):
    target = tmp_path / "out.json"
    words = "--models secvit_tiny --dtypes float32 --no-training --image-size 64 --batch-size 1 --rounds 1"
    small = f"--large 64 96 --lengths 196 --no-progress --plot {tmp_path}/out.png --json"
    assert bench.main([*words.split(), *small.split(), str(target)]) == 0
    assert (tmp_path / "out.png").stat().st_size > 10_000
    result = json.loads(target.read_text())
    text = report(result)
    for line in ("### inference, float32", "### Share of a forward pass", "### The clustering alone", "Null pair"):
        assert line in text
    assert platform.node() not in target.read_text() or not platform.node()
    assert {"recipe", "versions", "commit", "hardware", "date", "clock"} <= result.keys()
    assert len(result["models"][0]["seconds"]["secvit_tiny"]) == result["recipe"]["rounds"]


def test_unusable_arguments_are_named(capsys):
    assert bench.main(["--dtypes", "float16"]) == 2
    assert "choose from float32, bfloat16" in capsys.readouterr().err
    assert bench.main(["--plot", "out.txt"]) == 2
    assert "no picture format" in capsys.readouterr().err
    assert bench.main(["--json", "nowhere/out.json"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_every_argument_is_explained():
    assert "rounds" in bench.parser().format_help()


def test_parts_sum_to_the_whole_of_sec_attention():
    model = timm.create_model("secvit_nano").eval()
    shares = forward_parts(model, torch.randn(2, 3, 32, 32), rounds=3, clock=time.perf_counter)
    assert shares.keys() == {*PARTS, "partition"}
    assert all(0 < shares[part] < 1 for part in PARTS)
    assert shares["partition"] + shares["attention"] < 1


def test_timing_parts_leaves_the_functions_as_they_were():
    before = (attention.token_order, attention.permute_rows, attention._attend)
    with pytest.raises(RuntimeError), timed_parts(time.perf_counter):
        assert attention.token_order is not before[0]
        raise RuntimeError
    assert (attention.token_order, attention.permute_rows, attention._attend) == before
