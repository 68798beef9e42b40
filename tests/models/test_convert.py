"""The authors' checkpoints to ours and back, and what happens to files that are something else."""

import argparse
import pickle
import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import secvit.weights
from secvit.models import convert
from secvit.weights import read_weights

NAME = "secvit_nano"
SCALED = {"layer_scale": (False, False, True, True)}


def authors_state(name=NAME, **arguments):
    """A randomly filled state dict in the authors' layout, made from the shapes of ours."""
    model = timm.create_model(name, **arguments)
    state = {
        key: torch.randn(value.shape) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    return convert.to_authors(state, convert.heads_of(model)), convert.heads_of(model)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("arguments", [{}, SCALED], ids=["plain", "layer scale"])
def test_there_and_back_is_where_it_began(arguments):
    theirs, heads = authors_state(**arguments)
    ours = convert.from_authors(theirs, heads)
    assert_same(convert.to_authors(ours, heads), theirs)
    assert_same(convert.from_authors(convert.to_authors(ours, heads), heads), ours)


def test_the_authors_names_are_used():
    theirs, _ = authors_state(**SCALED)
    assert {
        "patch_embed.proj.0.weight", "layers.0.blocks.0.pos.weight", "layers.0.blocks.0.norm1.norm.weight",
        "layers.0.blocks.1.attn.qkv.bias", "layers.2.blocks.0.attn.out_proj.weight", "layers.2.blocks.0.attn.lepe.weight",
        "layers.2.blocks.3.gamma_1", "layers.3.blocks.0.ffn.dwconv.weight", "layers.0.downsample.reduction.weight",
        "layers.2.downsample.norm.running_mean", "layers.3.RoPE.angle", "proj.weight", "norm.running_var", "head.weight",
    } <= theirs.keys()  # fmt: skip
    assert theirs["layers.2.blocks.3.gamma_1"].shape == (1, 128, 1, 1)
    assert theirs["layers.0.blocks.0.attn.qkv.weight"].shape == (96, 32, 1, 1)
    assert theirs["head.weight"].shape == (10, 512, 1, 1)
    assert theirs["layers.1.RoPE.angle"].shape == (16,)


def test_rows_of_qkv_move_from_kind_first_to_head_first():
    theirs = {"layers.0.blocks.0.attn.qkv.bias": torch.arange(12.0)}  # q q | k k | v v of two heads, two channels each
    ours = convert.from_authors(theirs, (2,))["stages.0.blocks.0.attn.qkv.bias"]
    assert ours.tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]


def write(path, content):
    torch.save(content, path)
    return path


def test_converted_file_is_loaded_by_create_model(tmp_path):
    theirs, heads = authors_state()
    source, target = write(tmp_path / "authors.pth", {"model": theirs}), tmp_path / "ours.safetensors"
    count = convert.convert(source, target, NAME)
    assert count == len(load_file(target))
    model = timm.create_model(NAME, checkpoint_path=str(target))
    assert_same(dict(model.state_dict()), convert.from_authors(theirs, heads))


def test_timm_reads_the_authors_file_itself_as_pretrained_weights(tmp_path):
    theirs, heads = authors_state()
    source = write(tmp_path / "authors.pth", {"model": theirs})
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(source)})
    assert_same(dict(model.state_dict()), convert.from_authors(theirs, heads))


def test_conversion_is_undone_by_reverse(tmp_path):
    theirs, _ = authors_state()
    source = write(tmp_path / "authors.pth", theirs)
    convert.convert(source, tmp_path / "ours.safetensors", NAME)
    convert.convert(tmp_path / "ours.safetensors", tmp_path / "back.pth", NAME, reverse=True)
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), theirs)


@pytest.mark.parametrize("classes", [1, 37])
def test_any_number_of_classes_converts(classes, tmp_path):
    theirs, _ = authors_state(num_classes=classes)
    convert.convert(write(tmp_path / "a.pth", theirs), tmp_path / "b.safetensors", NAME)
    timm.create_model(NAME, num_classes=classes, checkpoint_path=str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize("nest", ["model", "state_dict", "state_dict_ema", "model_ema"])
def test_weights_are_found_beside_an_argparse_namespace(nest, tmp_path):
    theirs, _ = authors_state()
    content = {
        nest: theirs,
        "args": argparse.Namespace(lr=1e-3, data="/imagenet"),
        "epoch": 299,
        "optimizer": {"state": {}},
    }
    assert_same(read_weights(write(tmp_path / "a.pth", content)), theirs)


def test_averaged_weights_come_before_plain_ones(tmp_path):
    content = {"model": {"w": torch.zeros(1)}, "model_ema": {"w": torch.ones(1)}}
    assert read_weights(write(tmp_path / "a.pth", content))["w"] == 1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_dropped(prefix, tmp_path):
    theirs, _ = authors_state()
    for content in (
        {prefix + k: v for k, v in theirs.items()},
        {"state_dict": {prefix + k: v for k, v in theirs.items()}},
    ):
        assert_same(read_weights(write(tmp_path / "a.pth", content)), theirs)


@pytest.fixture
def few_presets(monkeypatch):
    """Three presets to look through, not nine: the large ones take seconds to build."""
    monkeypatch.setattr(timm, "list_models", lambda *args: ["secvit_nano", "secvit_small", "secvit_tiny"])


def test_a_checkpoint_of_another_preset_names_the_right_one(few_presets, tmp_path):
    theirs, _ = authors_state("secvit_tiny")
    source, target = write(tmp_path / "a.pth", theirs), tmp_path / "b.safetensors"
    with pytest.raises(ValueError, match="presets that do: secvit_tiny") as error:
        convert.convert(source, target, "secvit_small")
    report = str(error.value)
    assert re.search(r"\d+ missing \(stages\.0\.blocks\.2\.", report)
    assert not target.exists()
    with pytest.raises(ValueError, match=r"of another shape \(stem\.0\.weight"):
        convert.convert(source, target, NAME)


def test_a_checkpoint_that_fits_no_preset_says_so(few_presets, tmp_path):
    theirs, _ = authors_state(depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="does not fit secvit_nano; presets that do: none"):
        convert.convert(write(tmp_path / "a.pth", theirs), tmp_path / "b.safetensors", NAME)


def test_a_checkpoint_without_a_layer_is_reported_by_name(few_presets, tmp_path):
    theirs, _ = authors_state()
    del theirs["layers.0.blocks.1.norm2.norm.bias"]
    theirs["surprise"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        convert.convert(write(tmp_path / "a.pth", theirs), tmp_path / "b.safetensors", NAME)
    assert "1 missing (stages.0.blocks.1.norm2.bias)" in str(error.value)
    assert "1 unexpected (surprise)" in str(error.value)


def test_a_checkpoint_of_another_kind_of_model_is_refused(tmp_path):
    source = write(tmp_path / "resnet.pth", timm.create_model("test_resnet").state_dict())
    with pytest.raises(ValueError, match="not in the authors' layout"):
        convert.convert(source, tmp_path / "b.safetensors", NAME)


def test_our_own_checkpoint_is_not_converted_twice(tmp_path):
    source = write(tmp_path / "ours.pth", timm.create_model(NAME).state_dict())
    with pytest.raises(ValueError, match="not in the authors' layout"):
        convert.convert(source, tmp_path / "b.safetensors", NAME)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_with_code_is_refused_and_does_not_run(save, tmp_path):
    source, trace = tmp_path / "evil.pth", tmp_path / "ran"
    save({"model": {"w": torch.zeros(1)}, "extra": Trap(trace)}, source)
    with pytest.raises(ValueError, match=r"evil\.pth"):
        read_weights(source)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pt"])
@pytest.mark.parametrize("content", ["half", "noise", "nothing", "text"])
def test_a_broken_file_is_an_error_that_names_it(suffix, content, tmp_path):
    source = tmp_path / f"broken{suffix}"
    if suffix == ".safetensors":
        save_file({"w": torch.zeros(100)}, source)
    else:
        torch.save({"w": torch.zeros(100)}, source)
    whole = source.read_bytes()
    source.write_bytes(
        {"half": whole[: len(whole) // 2], "noise": b"\x93" * 1000, "nothing": b"", "text": b"<html>"}[content]
    )
    with pytest.raises(ValueError, match=f"broken{re.escape(suffix)}"):
        read_weights(source)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"none\.pth: no such file"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, torch.zeros(2), {"model": {"w": torch.zeros(1), "step": 3}}], ids=str
)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match="holds no state dict"):
        read_weights(write(tmp_path / "a.pth", content))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_part(step, suffix, tmp_path, monkeypatch):
    theirs, _ = authors_state()
    source, target = write(tmp_path / "a.pth", theirs), tmp_path / f"ours{suffix}"
    target.write_bytes(b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(secvit.files.os, step, full)
    with pytest.raises(ValueError, match=f"cannot write .*ours{re.escape(suffix)}: No space left on device"):
        convert.convert(source, target, NAME)
    assert target.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_a_folder_that_is_not_there_is_named_before_anything_is_written(tmp_path):
    theirs, _ = authors_state()
    with pytest.raises(ValueError, match="none: no such folder; make it first"):
        convert.convert(write(tmp_path / "a.pth", theirs), tmp_path / "none" / "a.safetensors", NAME)
