import json
import platform
import time

import pytest
import timm
import torch

from secvit.cli import main
from secvit.measure import bench, speed
from secvit.measure.bench_results import BenchResult
from secvit.measure.parts import PARTS, forward_parts, timed_parts
from secvit.measure.report import report
from secvit.ops import attention, rows
from secvit.ops.road import using_road
from secvit.signatures import explained, parameters
from tests.conftest import ROOT, slow_but
from tests.measure.literal import LITERAL, literal_module
from tests.ops.test_products import needs_onednn

SMALL = {"batch_size": 2, "image_size": 32, "rounds": 1}
ONLY_INFERENCE = {
    "dtypes": ["float32"], "training": False, "parts": False, "operation": False, "attention": False, "progress": False,
}  # fmt: skip


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("dtype", slow_but(("float32",), ("float32", "bfloat16")))
def test_every_setting_gives_a_ratio_to_the_base_and_to_the_twin(mode, dtype):
    found = speed.bench_models(["secvit_nano"], mode=mode, dtype=dtype, literal=literal_module(), **SMALL)
    rows = {row.name: row for row in found.rows}
    fused = {"fused secvit_nano"} if mode == "inference" else set()
    assert rows.keys() == {"secvit_nano", "literal secvit_nano", "secvit_nano (again)", *fused}
    assert all(rows[name].vs_literal.median > 0 for name in fused)
    assert rows["secvit_nano"].vs_literal.median > 0
    assert rows["secvit_nano"].vs_base.median == 1
    assert (rows["secvit_nano"].of_matrix_rate is not None) == (mode == "inference")


def test_no_speed_is_given_while_outputs_differ(tmp_path, monkeypatch):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(LITERAL.read_text().replace("D**-0.5", "D**-0.4") if LITERAL.is_file() else "")
    literal_module()
    monkeypatch.setattr(speed, "interleave", lambda *args, **kwargs: pytest.fail("timed"))
    with pytest.raises(ArithmeticError, match="no speed is given while outputs differ"):
        speed.bench_models(["secvit_nano"], literal=speed.load_literal(wrong), **SMALL)


# A stand-in for the authors' file.  As there: imports that warn, functions that timm registers and that take `args`,
# several networks, weights under the authors' names, drop path, a constructor that reads numbers from tensors.
THEIRS = """
from __future__ import annotations
import warnings
from dataclasses import dataclass
import timm
import torch
from timm.models import register_model
from timm.models.vision_transformer import _cfg
from secvit.models.convert import from_authors, heads_of, to_authors

warnings.warn("Importing from timm.models.layers is deprecated", FutureWarning)

@dataclass
class Settings:  # looks for its module, as register_model does
    depths: tuple
    drop_path_rate: float = 0.5

class Theirs(torch.nn.Module):
    def __init__(self, settings):
        super().__init__()
        rates = [rate.item() for rate in torch.linspace(0, settings.drop_path_rate, 2)]
        self.inner = timm.create_model("secvit_nano", depths=settings.depths, drop_path_rate=rates[-1])

    def state_dict(self):
        return to_authors(self.inner.state_dict(), heads_of(self.inner))

    def load_state_dict(self, state):
        return self.inner.load_state_dict(from_authors(state, heads_of(self.inner)))

    def forward(self, x):
        return self.inner(x)

@register_model
def KClusterFormerSimpleNew_A(args):
    model = Theirs(Settings((1, 1, 1, 1)))
    model.default_cfg = _cfg()
    return model

@register_model
def KClusterFormerSimpleNew_N(args):
    model = Theirs(Settings(DEPTHS))
    model.default_cfg = _cfg()
    return model
"""


@pytest.fixture
def theirs(tmp_path):
    depths = tuple(len(stage.blocks) for stage in speed.build("secvit_nano", 32, "meta").stages)
    path = tmp_path / "SecViT.py"
    path.write_text(THEIRS.replace("DEPTHS", str(depths)))
    return path


def test_a_file_like_the_authors_gives_twins(theirs):
    for _ in range(2):  # networks registered anew do not warn
        module = speed.load_literal(theirs)
    x = torch.randn(4, 3, 32, 32)
    model = speed.build("secvit_nano", 32)
    twin = module.like(model)
    assert not twin.training
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
        assert torch.equal(twin.train()(x), model.train()(x))  # drop path is off in both
    with pytest.raises(ValueError, match=r"SecViT.py has no network of this shape; it has those of secvit_nano$"):
        module.like(speed.build("secvit_tiny", 32))


def test_the_table_has_the_authors_network_and_names_models_without_one(theirs, capsys, monkeypatch):
    monkeypatch.setattr(speed.timm, "list_models", lambda pattern: ["secvit_nano"])  # building them all takes seconds
    options = "--dtypes float32 --no-training --no-parts --no-operation --no-attention --image-size 32 --batch-size 1"
    words = [*options.split(), "--rounds", "1", "--literal", str(theirs), "--models"]
    assert main(["bench", *words, "secvit_nano", "secvit_tiny"]) == 0
    table = capsys.readouterr().out
    assert "| literal secvit_nano " in table and "| literal secvit_tiny " not in table
    assert f"literal secvit_tiny: {theirs} has no network of this shape" in table
    assert main(["bench", *words, "secvit_tiny"]) == 2
    assert "no model has a literal twin" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        ("", r"neither a function like\(model\).*KClusterFormerSimpleNew_\* or SecViT_\*"),
        ("import torch\nimport absent_one.part\nfrom absent_two import x\n", "No module named 'absent_one'; run: pip install absent_one absent_two "),
        ("def f():\n    import absent_three\nf()\n", "No module named 'absent_three'; run: pip install absent_three "),
        ("from timm.models import absent\n", "ImportError: cannot import name 'absent'.*; it needs another version of timm"),
        ("import timm.absent\n", "No module named 'timm.absent'; it needs another version of timm"),
        ("def f(:\n", "cannot be run: SyntaxError"),
        ("1 / 0\n", "cannot be run: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_file_without_usable_networks_is_named_with_the_remedy(tmp_path, content, message):
    (tmp_path / "other.txt").write_text(content)
    with pytest.raises(ValueError, match=r"other\.txt .*" + message):
        speed.load_literal(tmp_path / "other.txt")


def test_no_speed_is_given_while_fusing_changes_the_function(monkeypatch):
    monkeypatch.setattr(speed.SECViT, "fuse", lambda model: torch.nn.Sequential(model, torch.nn.Softmax(-1)).eval())
    monkeypatch.setattr(speed, "interleave", lambda *args, **kwargs: pytest.fail("timed"))
    with pytest.raises(ArithmeticError, match="fused differs"):
        speed.bench_models(["secvit_nano"], **SMALL)


def test_without_the_literal_file_its_row_is_left_out_and_said_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = bench.run(["secvit_nano"], **ONLY_INFERENCE, **SMALL)
    assert "no literal twins" in report(result)
    assert not any(row.name.startswith("literal") for row in result.models[0].rows)
    with pytest.raises(ValueError, match="nowhere.py: no such file"):
        bench.run(["secvit_nano"], literal="nowhere.py")


def test_without_a_compiler_compiled_models_are_skipped_visibly(monkeypatch):
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    result = bench.run(["secvit_nano"], compiled=True, **ONLY_INFERENCE, **SMALL)
    assert "no C++ compiler" in report(result)
    assert not any(found.compiled for found in result.models)


def test_compiling_stops_at_its_time_limit_visibly(monkeypatch):
    def slow(name, call, *rest):
        time.sleep(0.01)
        return call

    monkeypatch.setattr(speed, "compile_call", slow)
    found = speed.bench_models(["secvit_nano", "resnet18"], compiled=True, compile_seconds=0.001, **SMALL)
    assert "had gone into compiling" in found.skipped["resnet18"]
    assert [row.name for row in found.rows] == ["secvit_nano", "secvit_nano (again)"]


@pytest.mark.slow
def test_a_run_writes_what_its_tables_show(tmp_path):
    target = tmp_path / "out.json"
    words = "--models secvit_tiny --dtypes float32 --no-training --image-size 64 --batch-size 1 --rounds 1"
    small = f"--large 64 96 --lengths 196 --plot {tmp_path}/out.png --json"
    assert main(["bench", *words.split(), *small.split(), str(target)]) == 0
    assert (tmp_path / "out.png").stat().st_size > 10_000
    result = json.loads(target.read_text())
    text = report(BenchResult.read(result))
    for line in ("### inference, float32", "### Share of a forward pass", "### The clustering alone", "Null pair"):
        assert line in text
    assert platform.node() not in target.read_text() or not platform.node()
    assert {"recipe", "versions", "commit", "hardware", "date", "clock"} <= result.keys()
    assert len(result["models"][0]["seconds"]["secvit_tiny"]) == result["recipe"]["rounds"]


@needs_onednn
def test_where_our_linear_layers_take_onednn_a_rivals_do_in_a_row_of_its_own(monkeypatch):
    def no_clock(candidates, base, *args, **kwargs):
        return {name: [1.0] for name in [*candidates, base + speed.NULL]}

    monkeypatch.setattr(speed, "interleave", no_clock)
    models = ["secvit_nano", "deit_tiny_patch16_224", "resnet18"]
    with using_road("onednn"):
        result = bench.run(models, **ONLY_INFERENCE, **SMALL)
    text = report(BenchResult.read(result.written()))
    assert "Float32 products of secvit's layers on the CPU: onednn (chosen by SECVIT_CPU_ROAD or set_road)." in text
    assert "| same road deit_tiny_patch16_224 " in text and "without these words, as timm has it" in text
    assert "same road resnet18" not in text and "same road secvit" not in text
    assert "of oneDNN's rate |" in text and all(row.of_onednn_rate > 0 for row in result.models[0].rows)
    with using_road("torch"):
        assert "same road" not in report(bench.run(models[:2], **ONLY_INFERENCE, **SMALL))


def test_results_that_were_written_once_read_and_write_the_same():
    entries = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    results = [one for one in entries if isinstance(one, dict) and one.get("kind") == "secvit bench"]
    assert results and all(BenchResult.read(one).written() == one for one in results)


def test_unusable_arguments_are_named(capsys):
    assert main(["bench", "--dtypes", "float16"]) == 2
    assert "choose from float32, bfloat16" in capsys.readouterr().err
    assert main(["bench", "--plot", "out.txt"]) == 2
    assert "no picture format" in capsys.readouterr().err
    assert main(["bench", "--json", "nowhere/out.json"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_every_argument_is_explained():
    known = explained(bench.run)
    assert all(known[name] for name in parameters(bench.run))


def test_parts_sum_to_the_whole_of_sec_attention():
    model = timm.create_model("secvit_nano").eval()
    shares = forward_parts(model, torch.randn(2, 3, 32, 32), rounds=3, clock=time.perf_counter)
    assert shares.keys() == {*PARTS, "partition"}
    assert all(0 < shares[part] < 1 for part in PARTS)
    assert shares["partition"] + shares["attention"] < 1


def test_timing_parts_leaves_the_functions_as_they_were():
    before = (attention.packed_order, rows.permute_rows, rows.softmax_attention)
    with pytest.raises(RuntimeError), timed_parts(time.perf_counter):
        assert attention.packed_order is not before[0]
        raise RuntimeError
    assert (attention.packed_order, rows.permute_rows, rows.softmax_attention) == before
