import json
import platform
import re
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import secvit.adapt.attend as attend
from secvit.cli import main
from secvit.layers import Linear, route_linears
from secvit.measure import count_macs, patching, peak, variants
from secvit.measure.parts import PARTS, forward_parts, timed_parts
from secvit.measure.patch_picture import draw_patch_report
from secvit.measure.patch_results import BASES, PatchReport, SizeResult, break_even, break_even_of
from secvit.measure.patch_tables import patch_markdown
from secvit.measure.patching import patch_report
from secvit.measure.rounds import Ratio, Speeds
from secvit.ops import QUALITIES
from secvit.ops.order import Plan, partition_sizes
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"

TIMM = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit": ("deit_tiny_patch16_224", {}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "registers, no class token": ("vit_little_patch16_reg1_gap_256", {}),
    "rope": ("eva02_tiny_patch14_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {"embed_dim": 96, "num_heads": 3}),
    "clip": ("vit_base_patch16_clip_224", {"embed_dim": 96, "num_heads": 3}),
    "dinov3": ("vit_small_patch16_dinov3", {"embed_dim": 96, "num_heads": 3}),
}


def small(name, **options):
    return timm.create_model(name, depth=2, **options).eval()


@pytest.fixture
def no_processes(monkeypatch):
    """Peaks without the seconds that a process takes to start."""
    monkeypatch.setattr(patching, "peak_memory", lambda *args, **kwargs: 1000)


@pytest.fixture(scope="module")
def report():
    options = {"cluster_size": 9, "rounds": 1, "training": True, "unfused": True}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patching, "peak_memory", lambda model, name, size, *a, **kw: {"original": 1000}.get(name, 2000))
        return patch_report(small("deit_tiny_patch16_224", num_classes=5), [64, 32, 96], **options)


# -- the work --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_clusters", [2, 5])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_macs_of_a_patched_model_are_those_of_the_formula(name, num_clusters):
    model = small(name)
    prefix, channels = model.num_prefix_tokens, 192
    options = {"num_clusters": num_clusters}
    original, patched = (count_macs(variants.variant(model, v, 112, options), (3, 112, 112)) for v in BASES)
    tokens = 7 * 7
    assert original.matmul == 2 * 2 * (prefix + tokens) ** 2 * channels
    assert original.scores == 0
    sizes = partition_sizes(tokens, num_clusters)
    within = sum(size * (size + prefix) for size in sizes)
    across = prefix * (tokens + num_clusters * prefix)  # prefix queries meet each cluster's copy of the prefix keys
    assert patched.matmul == 2 * 2 * (within + across) * channels
    assert patched.scores == 2 * tokens * channels
    assert patched.without_attention == original.without_attention


# -- where the time goes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared": True},
        {"share_order_every": 2},
        {"partition": "kmeans"},
        {"partition": "tree", "near": 2, "far": True},
    ],
)
def test_parts_of_a_patched_model_sum_to_less_than_the_whole(options):
    network = variants.variant(small("deit_tiny_patch16_224"), "patched", 112, {"num_clusters": 4, **options})
    shares = forward_parts(network, torch.randn(2, 3, 112, 112), rounds=1, clock=time.perf_counter)
    # clusters of unequal sizes are gathered into slots and out of them
    never = {"kmeans": {"restore", "inverse"}, "tree": {"inverse"}}.get(options.get("partition"), set())
    assert all(0 < shares[part] < 1 for part in set(PARTS) - never)
    assert shares["partition"] + shares["attention"] < 1


def test_time_counts_once_where_timed_functions_call_each_other():
    network = variants.variant(small("deit_tiny_patch16_224"), "patched", 112, {"num_clusters": 4})
    ticks = iter(range(10**6))
    with torch.inference_mode(), timed_parts(lambda: float(next(ticks))) as parts:
        network(torch.randn(1, 3, 112, 112))
    # a clock that ticks when it is read: a function alone takes 1, one that calls n such 1 + 2 n
    calls = {"score and sort": 1, "gather": 3, "inverse": 1, "restore": 1, "attention": 3}
    assert {part: parts[part] for part in calls} == {part: 2 * count for part, count in calls.items()}
    assert parts["indices"] == 2 * (1 + sum(calls.values()) - calls["score and sort"])


def test_timing_leaves_methods_and_functions_as_they_were():
    def found():
        return attend.sec_attention, attend.attend_sorted, Plan.take, Plan.__dict__["put_back"]

    before = found()
    with pytest.raises(RuntimeError), timed_parts(time.perf_counter):
        assert all(a is not b for a, b in zip(found(), before))
        raise RuntimeError
    assert found() == before


# -- the report --------------------------------------------------------------------------------------


def test_the_report_has_every_number_of_every_size(report):
    assert [at.size for at in report.sizes] == [32, 64, 96]
    assert [(at.prefix_tokens, at.tokens, at.clusters) for at in report.sizes] == [
        (1, 4, 1), (1, 16, 2), (1, 36, 4),
    ]  # fmt: skip
    for at in report.sizes:
        others = {"window", "random"} if at.clusters > 1 else set()  # the default attends to all of so few
        assert at.inference.speeds.keys() == {"original", "patched", "unfused"} | others
        assert at.agreement.keys() == {"patched"} | others
        assert at.peak["inference"].keys() == {"original", "patched", "unfused"}
        assert at.training.speeds["patched"].median > 0
        assert len(at.inference.seconds["original"]) == 1
        assert at.peak["inference"]["unfused"] == 2000
        assert at.parts.keys() == {*PARTS, "partition"}
    first, last = report.sizes[0], report.sizes[-1]
    # float32 sums in another order
    assert first.cosine["tokens"] == pytest.approx(1, abs=1e-5)
    assert last.cosine["tokens"] < 1 - 1e-5
    assert last.macs["patched"].matmul < last.macs["original"].matmul


def test_the_report_can_be_written_and_names_no_machine(report):
    entries = report.written()
    text = json.dumps(entries)
    assert {"recipe", "versions", "commit", "hardware", "date", "clock"} <= entries.keys()
    assert not platform.node() or platform.node() not in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("patch-report*.json")), ids=lambda path: path.name)
def test_a_result_that_was_written_once_reads_and_writes_the_same(path):
    entries = json.loads(path.read_text())
    assert PatchReport.read(entries).written() == entries


def test_a_report_reads_as_it_was_written(report):
    entries = json.loads(json.dumps(report.written()))
    assert PatchReport.read(entries) == report
    assert list(entries["sizes"][0]) == [
        "size", "tokens", "prefix_tokens", "clusters", "macs", "cosine", "peak", "inference", "parts", "training",
        "agreement",
    ]  # fmt: skip


def test_the_tables_show_the_report(report):
    text = patch_markdown(report)
    for line in (
        "VisionTransformer",
        "clusters of 9",
        "### Peak memory",
        "| 1 + 36 ",
        "2.00",
        "### Share of a patched",
    ):
        assert line in text
    assert "At 32 px one cluster holds all 4 tokens: nothing changes." in text
    assert "inference: " in text and "training: " in text


def test_the_plot_is_drawn_whole(report, tmp_path):
    for name in ("all", "one size"):
        shown = report if name == "all" else replace(report, sizes=report.sizes[:1])
        target = draw_patch_report(shown, tmp_path / f"{name}.png")
        assert target.read_bytes().startswith(b"\x89PNG")


def test_random_weights_are_said_to_be_random(no_processes, monkeypatch):
    monkeypatch.setattr(variants, "load_model", lambda name: small(name))
    found = patch_report("deit_tiny_patch16_224", [32], num_clusters=2, rounds=1, unfused=True)
    assert "**The weights are random, so the cosines below mean nothing" in patch_markdown(found)
    given = patch_report(small("deit_tiny_patch16_224"), [32], num_clusters=2, rounds=1)
    assert "random, so" not in patch_markdown(given)


def test_unfused_attention_without_memory_is_left_out_visibly(no_processes, monkeypatch):
    monkeypatch.setattr(patching, "_free_bytes", lambda device: 1000)
    found = patch_report(small("deit_tiny_patch16_224"), [32], num_clusters=2, rounds=1, unfused=True)
    assert "unfused" not in found.sizes[0].inference.speeds
    assert "unfused was not run at 32 px" in patch_markdown(found)


def test_reporting_leaves_the_model_as_it_was(no_processes, monkeypatch):
    routed = []
    monkeypatch.setattr(patching, "route_linears", lambda network: routed.append(route_linears(network)))
    model = small("deit_tiny_patch16_224").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = patch_report(model, [32], num_clusters=2, rounds=1, training=True, route=True)
    assert routed[0] > 4 and found.made["recipe"]["route"]  # all that is compared is a copy of the routed one
    assert model.training and not any(type(layer) is Linear for layer in model.modules())
    assert not hasattr(model, "secvit_patch")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_precision_is_measured_in_inference_and_training(no_processes):
    found = patch_report(
        small("deit_tiny_patch16_224"), [64], num_clusters=4, rounds=1, dtype="bfloat16", training=True
    )
    assert 0.9 < found.sizes[0].cosine["tokens"] <= 1.01


@pytest.mark.parametrize("family", TIMM)
def test_each_family_of_timm_is_reported_at_two_sizes(family, no_processes):
    name, options = TIMM[family]
    model = small(name, **options)
    side = variants.patch_side(model)
    found = patch_report(model, [2 * side, 5 * side], num_clusters=3, rounds=1)
    assert [at.tokens for at in found.sizes] == [4, 25]
    assert found.sizes[1].macs["patched"].scores > 0


# -- the default, and photos ------------------------------------------------------------------------------


def photo(path, seed):
    """Squares of one grey each, in another picture for every seed."""
    squares = np.random.default_rng(seed).integers(0, 256, (5, 6), np.uint8)
    Image.fromarray(squares).resize((120, 100), Image.Resampling.NEAREST).convert("RGB").save(path)


def test_without_a_number_few_tokens_change_nothing_and_nothing_is_compared(no_processes):
    found = patch_report(small("deit_tiny_patch16_224"), [64], rounds=1)
    assert found.recipe["quality"] == "balanced" and found.sizes[0].clusters == 1
    assert found.sizes[0].agreement.keys() == {"patched"}
    assert found.sizes[0].cosine == {"tokens": pytest.approx(1, abs=1e-6), "pooled": pytest.approx(1, abs=1e-6)}
    assert "At 64 px 16 tokens are too few for clusters to pay: nothing changes." in patch_markdown(found)
    assert "| 64 | no clusters " in patch_markdown(found).replace("  ", " ")


def test_features_are_compared_photo_by_photo_and_the_worst_is_named(tmp_path, no_processes, monkeypatch):
    monkeypatch.setitem(QUALITIES, "balanced", replace(QUALITIES["balanced"], break_even=8))
    for name in ("b.png", "a.png"):
        photo(tmp_path / name, ord(name[0]))
    photo(tmp_path.parent / "c.png", 3)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    model = small("deit_tiny_patch16_224")
    with torch.no_grad():
        for parameter in model.parameters():  # so that attention tells tokens apart
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    paths = [str(tmp_path), str(tmp_path.parent / "c.png")]
    found = patch_report(model, [128], num_clusters=5, rounds=1, batch_size=2, photos=paths)
    assert found.recipe["photos"] == ["a.png", "b.png", "c.png"]
    assert [note for note in found.notes if note.startswith("broken.jpg: ")]
    at = found.sizes[0]
    assert {name: one.clusters for name, one in at.agreement.items()} == {
        "patched": 5,
        "default": 4,
        "window": 5,
        "random": 5,
    }
    assert at.inference.speeds.keys() == {"original", *at.agreement}
    # the same by hand
    files = [tmp_path / "a.png", tmp_path / "b.png", tmp_path.parent / "c.png"]
    images = torch.cat(list(variants.photographs(files, 128, model, 1)))
    for name, options in {"patched": {"num_clusters": 5}, "default": {}}.items():
        with torch.no_grad():
            x, y = (variants.variant(model, kind, 128, options).forward_features(images) for kind in BASES)
        cosines = torch.cosine_similarity(x, y, dim=-1)
        assert at.agreement[name].tokens == pytest.approx(cosines[:, 1:].mean(dim=1).tolist(), abs=1e-5)  # float32
        assert at.agreement[name].pooled == pytest.approx(cosines[:, 0].tolist(), abs=1e-5)
        assert len({round(cosine, 4) for cosine in at.agreement[name].tokens}) > 1
    worst = min(at.agreement["patched"].tokens)
    name = found.recipe["photos"][at.agreement["patched"].tokens.index(worst)]
    line = next(line for line in patch_markdown(found).splitlines() if line.startswith("| 128 | 5 clusters"))
    assert f"| {worst:.4f} ({name})" in line


# -- transformers --------------------------------------------------------------------------------------


def tower(kind):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64}
    sizes |= {"image_size": 64, "patch_size": 16}
    configs = {
        "vit": lambda: transformers.ViTConfig(**sizes),
        "clip": lambda: transformers.CLIPVisionConfig(**sizes),
        "siglip": lambda: transformers.SiglipVisionConfig(**sizes),
        "dinov2": lambda: transformers.Dinov2Config(**sizes),
        "dinov3": lambda: transformers.DINOv3ViTConfig(**sizes),
    }
    return transformers.AutoModel.from_config(configs[kind]()).eval()


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "dinov2", "dinov3"])
def test_towers_of_transformers_are_reported_at_other_sizes_than_theirs(kind, no_processes):
    found = patch_report(tower(kind), [64, 96], num_clusters=4, rounds=1, unfused=True)
    assert [at.tokens for at in found.sizes] == [16, 36]
    assert found.sizes[1].macs["patched"].scores == 2 * 36 * 48
    assert found.sizes[1].cosine["tokens"] < 1


def test_a_folder_of_a_tower_is_reported_with_its_weights(tmp_path, no_processes):
    model = tower("vit")
    model.save_pretrained(tmp_path / "my_tower")
    found = patch_report(str(tmp_path / "my_tower"), [64], num_clusters=4, rounds=1)
    assert found.weights == "given"
    assert found.model == "my_tower"
    assert str(tmp_path) not in json.dumps(found.written())
    expected = patch_report(model, [64], num_clusters=4, rounds=1)
    assert found.sizes[0].cosine == expected.sizes[0].cosine


# -- break-even ----------------------------------------------------------------------------------------


def test_break_even_lies_where_the_line_between_sizes_crosses_one():
    # log-log: half way between 1 / 2 and 2 is the geometric mean of the sizes
    assert break_even([200, 800], [0.5, 2.0]) == pytest.approx(400)
    assert break_even([100, 200, 800], [1.5, 0.5, 2.0]) == pytest.approx(400)
    assert break_even([200, 800], [1.5, 2.0]) is None
    assert break_even([200, 800], [0.5, 0.9]) is None
    assert break_even([200, 800], [1.5, 0.9]) is None


def of_size(size, clusters, speed):
    ratio = Ratio(speed, speed, speed)
    inference = Speeds({"original": Ratio(1.0, 1.0, 1.0), "patched": ratio}, Ratio(1.0, 1.0, 1.0), True, {})
    return SizeResult(size, 16, 1, clusters, {}, {}, {}, inference, {})


@pytest.mark.parametrize(
    "speeds, sentence",
    [
        ([0.5, 2.0], "faster from about 400 px on"),
        ([0.5, 0.9], "not faster at any size measured: leave this model as it is at 200 and 800 px"),
        ([1.5, 2.0], "faster at all sizes measured (200 and 800 px)"),
        ([1.5, 0.9], "faster only at 200 px, and not at 800 px"),
    ],
)
def test_the_verdict_is_a_sentence(speeds, sentence):
    results = [of_size(size, 4, speed) for size, speed in zip([200, 800], speeds)]
    assert break_even_of(results, "inference").sentence.startswith(sentence)
    results[0].inference.quiet = False
    assert "too noisy to quote at 200 px" in break_even_of(results, "inference").sentence


def test_a_size_with_one_cluster_decides_nothing():
    results = [of_size(200, 1, 1.1), of_size(800, 4, 0.9)]
    assert "not faster" in break_even_of(results, "inference").sentence
    assert "one cluster" in break_even_of(results[:1], "inference").sentence


# -- memory --------------------------------------------------------------------------------------------


class Holder(torch.nn.Module):
    """Holds 64 MiB for a moment, and has an input size."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        held = torch.ones(16 * 2**20) * self.weight.detach()
        return images.mean() * self.weight + held[0]


@pytest.mark.slow
def test_a_peak_is_what_the_call_holds():
    found = peak.peak_memory(Holder(), "original", 32, {})
    # the product of 64 MiB beside its input of 64 MiB; the kernel counts pages in lots, and the interpreter has needs
    assert 126 < found / 2**20 < 136


def test_a_killed_process_is_no_number(monkeypatch):
    killed = subprocess.CompletedProcess([], -9, b"", b"")
    monkeypatch.setattr(peak.subprocess, "run", lambda *args, **kwargs: killed)
    assert peak.peak_memory(Holder(), "original", 32, {}) is None


# -- what cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, reason",
    [
        ("deit_tinny_patch16_224", "no model 'deit_tinny_patch16_224'"),
        ("resnet18", "no attention that can be clustered in ResNet"),
        (
            "deit_tiny_patch16_224 --size 224 230",
            "size 230 is no multiple of the patches' 16 px; choose for example 224",
        ),
        ("deit_tiny_patch16_224 --num_clusters 2 --cluster_size 9", "not both"),
        ("deit_tiny_patch16_224 --rounds 0", "rounds=0"),
        ("deit_tiny_patch16_224 --layers 99", "choose from 0 to 11"),
        ("deit_tiny_patch16_224 --json nowhere/out.json", "no such folder"),
        ("deit_tiny_patch16_224 --plot nowhere/out.png", "no such folder"),
        ("deit_tiny_patch16_224 --photos nowhere.jpg --size 32", "nowhere.jpg: cannot be read"),
        ("deit_tiny_patch16_224 --quality best", "quality='best'; choose one of fast, balanced, faithful"),
        ("deit_tiny_patch16_224 --quality fast --cluster_size 9", "drop cluster_size=9"),
        ("deit_tiny_patch16_224 --near 2 --far", "quality='balanced' chooses near and far; drop near=2 and far=True"),
        ("nowhere.safetensors --model deit_tiny_patch16_224", "no model 'nowhere.safetensors'"),
        (
            "deit_tiny_patch16_224 --model weights.safetensors",
            "is itself the name of a network, and weights.safetensors",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words, reason, capsys):
    assert main(["patch-report", *words.split()]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("secvit patch-report: ") and reason in said
    assert len(said.splitlines()) == 1


def test_a_patched_model_is_refused():
    network = variants.variant(small("deit_tiny_patch16_224"), "patched", 32, {"num_clusters": 2})
    with pytest.raises(ValueError, match="unpatch"):
        patch_report(network, [32])


def test_the_command_writes_numbers_and_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(variants, "load_model", lambda name: small(name))
    target, plot = tmp_path / "out.json", tmp_path / "out.png"
    path = tmp_path / "photo.png"
    photo(path, 0)
    words = f"deit_tiny_patch16_224 --size 32 --num_clusters 2 --rounds 1 --photos {path} --json {target} --plot {plot}"
    assert main(["patch-report", *words.split()]) == 0
    said = capsys.readouterr().out
    assert "features on 1 photo" in said
    assert plot.is_file()
    found = json.loads(target.read_text())
    assert found["recipe"]["photos"] == ["photo.png"]
    assert str(tmp_path) not in target.read_text()
    assert found["sizes"][0]["peak"]["inference"]["original"] > 0


def test_the_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["patch-report", "--help"])
    said = capsys.readouterr().out
    assert "secvit patch-report vit_base_patch16_224 --size 224 512 1024" in said
    assert not re.search(r"^  --\w+ \w+\s*$\n  --", said, flags=re.MULTILINE), "an option without a word about it"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_measured_too(no_processes):
    found = patch_report(small("deit_tiny_patch16_224"), [64], num_clusters=4, rounds=1, device="cuda", training=True)
    assert found.sizes[0].training.speeds["patched"].median > 0
