import json
import math
import platform
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from secvit import connectors
from secvit.cli import main
from secvit.measure import connector_work
from secvit.measure.connector_results import ConnectorReport
from secvit.measure.connector_tables import connector_markdown
from secvit.measure.connector_work import Shape, work
from secvit.measure.connectors import Timed, connector_report
from tests.conftest import ROOT

pytest.importorskip("transformers", reason="transformers is not installed")

TINY = Shape("tiny", 56, 14, 32, 64, 3, 4, 48, 80, 2, 4, 2, 12, 100)
TEXT, NEW = 6, 5


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(connector_work.SHAPES, "tiny", TINY)
    return Timed(TINY, TEXT, NEW, "float32", "cpu")


def attention_flops(q, k, v, *args, out_shape=None, **kwargs):
    """Products of queries (B, h, Lq, D) with keys (B, h, Lk, D) and of weights with values, by shapes."""
    return 2 * math.prod(q[:3]) * k[2] * (q[3] + v[3])


def counted(call):
    """Multiply-accumulates that torch saw, and what the call returned."""
    # torch 2.15 counts attention on CPUs itself, earlier ones do not
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=on_cpu)
    with counter:
        result = call()
    return sum(counter.get_flop_counts()["Global"].values()) // 2, result


# -- the work ------------------------------------------------------------------------------------


def test_work_of_the_tower_is_what_torch_counts(tiny):
    assert counted(tiny.features)[0] == connector_work.vision_macs(TINY)


@pytest.mark.parametrize("tokens", [16, 8, 5])
def test_work_of_prefill_and_decode_is_what_torch_counts(tiny, tokens):
    length = TEXT + tokens
    prompt = torch.randn(1, length, TINY.dim)
    with torch.no_grad():
        prefill, out = counted(lambda: tiny.language(inputs_embeds=prompt, use_cache=True, logits_to_keep=1))
    decode, _ = counted(lambda: tiny.later(getattr(out, tiny.cache_name)))
    # the angles of rotary positions, no work to speak of, are a product of two vectors in some versions of transformers
    angles = TINY.head_dim // 2
    assert prefill - connector_work.prefill_macs(TINY, length) in (0, angles * length)
    assert decode - connector_work.decode_macs(TINY, length, NEW) in (0, angles * (NEW - 1))


def test_bytes_of_keys_and_values_are_those_of_the_cache(tiny):
    connector = tiny.connector("sec", 5, "cls")
    layers = tiny.cache(connector).layers
    held = sum(x.numel() * x.element_size() for layer in layers for x in (layer.keys, layer.values))
    assert held == connector_work.kv_bytes(TINY, TEXT + 5 + 1, bytes_each=4)


def test_a_decoding_step_reads_every_weight_but_the_embedding_and_the_norms(tiny):
    weights = sum(p.numel() for name, p in tiny.language.named_parameters() if "norm" not in name)
    weights -= tiny.language.get_input_embeddings().weight.numel()
    cache = connector_work.kv_bytes(TINY, 11)
    assert connector_work.step_bytes(TINY, 11, batch=3) == 2 * weights + 3 * cache


def test_work_of_the_connectors_is_that_of_their_matrices():
    dim, out, length, heads = TINY.vision_dim, TINY.dim, TINY.patches, 1
    mlp = dim * out + out * out
    found = {
        name: connector_work.connector_macs(TINY, connector_work.connector_of(TINY, name, tokens, "cls"))
        for name, tokens in (("mlp", length), ("sec", 5))
    }
    assert found["mlp"] == (length + 1) * mlp
    projections = (3 * length + 5) * dim**2  # q, k, v of all tokens, o of five
    slots = 4  # 16 tokens in five groups: the largest has four
    products = 2 * 5 * slots * dim * heads
    scores = length * dim
    assert found["sec"] == 6 * mlp + projections + products + scores


def test_7b_and_13b_have_the_parameters_of_their_language_models():
    for name, billions in (("7b", 6.74), ("13b", 13.02)):
        shape = connector_work.SHAPES[name]
        read = connector_work.step_bytes(shape, 0) / 2 + shape.vocab * shape.dim
        assert read / 1e9 == pytest.approx(billions, abs=0.01)  # as published, norms left out
    assert connector_work.kv_bytes(connector_work.SHAPES["7b"], 1) == 2**19  # half a MiB a token in half precision


def test_fewer_tokens_are_less_work_in_prefill_and_hardly_less_in_decode():
    rows, notes = work(connector_work.SHAPES["7b"], "sec", [576, 144], "cls", 64, 32)
    all_tokens, fewer = (row.macs for row in rows)
    assert not notes
    assert all_tokens["vision"] == fewer["vision"]
    assert 2.8 < all_tokens["prefill"] / fewer["prefill"] < 641 / 209 * 1.1
    assert 1 < all_tokens["decode"] / fewer["decode"] < 1.05


def test_what_a_connector_cannot_give_is_said_and_left_out():
    if "pool" not in connectors.CONNECTORS:
        pytest.skip("no connector pool")
    rows, notes = work(connector_work.SHAPES["7b"], "pool", [576, 288, 144], "cls", 64, 32)
    assert [row.tokens for row in rows] == [576, 144]
    assert "288" in notes[0]


@pytest.mark.parametrize("name", connectors.CONNECTORS)
def test_each_connector_is_counted(name):
    tokens = TINY.patches if name == "mlp" else 4
    rows, notes = work(TINY, name, [tokens], None, TEXT, NEW)
    assert rows and rows[0].macs["connector"] > 0, notes


# -- shapes ----------------------------------------------------------------------------------------


def test_a_folder_of_a_llava_gives_its_shape(tmp_path):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, ViTConfig

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100,
    )  # fmt: skip
    LlavaConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path / "tiny")
    assert connector_work.shape_of(str(tmp_path / "tiny")) == TINY
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="vit is no LLaVA"):
        connector_work.shape_of(str(tmp_path / "vit"))


# -- the report --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(connector_work.SHAPES, "tiny", TINY)
        options = {"tokens": [4, 16, 8], "text": TEXT, "new": NEW, "rounds": 1, "progress": False}
        return connector_report(["tiny"], timed="tiny", **options)


def test_every_number_of_tokens_is_worked_out_and_timed(report):
    assert [row.tokens for row in report.models[0].rows] == [16, 8, 4]
    assert [row.connector for row in report.models[0].rows] == ["mlp", "sec", "sec"]
    for part in ("first token", "later tokens", "answer"):
        speeds = report.timed.parts[part].speeds
        assert {"16", "8", "4"} <= speeds.keys()
        assert speeds["16"].median == 1
    assert "vision" in report.timed.parts["first token"].speeds


def test_the_tables_show_the_report_and_name_no_machine(report):
    text = connector_markdown(report)
    assert "### tiny: work and memory" in text and "### tiny, random weights: speed, 16 + 1 tokens = 1" in text
    assert "Null pair" in text
    dumped = json.dumps(report.written())
    assert {"recipe", "versions", "commit", "hardware", "date"} <= report.written().keys()
    assert not platform.node() or platform.node() not in dumped


def test_a_report_reads_and_writes_what_stands_in_its_file(report):
    files = sorted((ROOT / "benchmarks" / "results").glob("connector-cost*.json"))
    assert files
    for text in (json.dumps(report.written()), *(file.read_text() for file in files)):
        assert ConnectorReport.read(json.loads(text)).written() == json.loads(text)


def test_the_papers_speeds_stand_beside_ours():
    result = connector_report(["7b", "13b"], timed="none", tokens=[576, 256, 144], progress=False)
    text = connector_markdown(result)
    rows = [line for line in text.splitlines() if line.startswith(("| 256", "| 144"))]
    assert [re.findall(r"([\d.]+) +\|$", row)[0] for row in rows] == ["1.7", "2.1", "1.8", "2.2"]


def test_the_command_writes_the_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(connector_work.SHAPES, "tiny", TINY)
    target = tmp_path / "out.json"
    words = f"bench connector --models tiny --timed tiny --tokens 16 8 --rounds 1 --new 3 --json {target}"
    assert main(words.split()) == 0
    assert "| 8 + 1" in capsys.readouterr().out
    assert json.loads(target.read_text())["recipe"]["tokens"] == [16, 8]


@pytest.mark.parametrize(
    "words, reason",
    [
        ("--connector seq", "no connector 'seq'"),
        ("--models nowhere/llava", "nowhere/llava: no model by that name or folder"),
        ("--new 1", "new=1"),
        ("--dtype float8", "dtype='float8'"),
        ("--json nowhere/out.json", "no such folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words, reason, capsys):
    assert main(["bench", "connector", "--timed", "none", *words.split()]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("secvit bench: ") and reason in said
    assert len(said.splitlines()) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_timed_too(monkeypatch):
    monkeypatch.setitem(connector_work.SHAPES, "tiny", TINY)
    found = connector_report(["tiny"], timed="tiny", tokens=[16, 8], rounds=1, device="cuda", progress=False)
    assert found.timed.parts["answer"].speeds["8"].median > 0
