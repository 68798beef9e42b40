"""Weight files of other hands: wrappers taken off, damage refused by name; and a run's config.yaml, typed."""

from __future__ import annotations

import io
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file

from secvit.cli import main
from secvit.models import convert
from secvit.models.convert import fitting_models, heads_of, to_authors
from secvit.models.saved import load_model, load_pretrained, saved_config
from secvit.weights import load_backbone, load_weights, read_weights

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [2, 4, 6, 8], "head_hidden_size": 32}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5).state_dict()


def write(path, content):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous().clone() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.", "net.",
            "model.module.", "ema_model.", "module.module.", "_fsdp_wrapped_module._orig_mod.", "_forward_module."]  # fmt: skip


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_taken_off(prefix, ending, state, tmp_path):
    path = write(tmp_path / f"a{ending}", {prefix + key: value for key, value in state.items()})
    assert same(read_weights(path), state)
    assert same(load_model("test_resnet", path).state_dict(), state)


def test_wrappers_inside_of_a_network_are_taken_off(state, tmp_path):
    inside = {key.replace("layer1.0.", "layer1.0._orig_mod.").replace("layer2.", "layer2._checkpoint_wrapped_module."): v
              for key, v in state.items()}  # fmt: skip
    assert same(read_weights(write(tmp_path / "a.safetensors", inside)), state)


@pytest.mark.parametrize(
    "content",
    [
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "pytorch-lightning_version": "2", "epoch": 3},
        lambda s: {"state_dict": {**{f"model.{k}": v for k, v in s.items()}, "criterion.weight": torch.ones(5)}},
        lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
        lambda s: {**{f"online_model.{k}": v + 1 for k, v in s.items()}, **{f"ema_model.{k}": v for k, v in s.items()}},
        lambda s: {"model_state_dict": s, "optimizer": {"state": {}}},
        lambda s: {"state_dict": {"model": s}},
        lambda s: {"params_ema": s, "params": {}},
    ],
    ids=["lightning", "lightning with a loss", "averaged", "ema_pytorch", "state", "nested", "basicsr"],
)
def test_the_network_inside_of_a_training_state_is_found(content, state, tmp_path):
    assert same(read_weights(write(tmp_path / "a.pth", content(state))), state)


def test_a_network_with_a_part_called_model_keeps_its_names(tmp_path):
    state = {"model.weight": torch.ones(2), "head.weight": torch.ones(2), "neck.weight": torch.ones(2)}
    assert same(read_weights(write(tmp_path / "a.safetensors", state)), state)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_file_without_tensors_is_refused(ending, tmp_path):
    write(tmp_path / f"none{ending}", {})
    with pytest.raises(ValueError, match=f"none{ending}: holds no tensors"):
        read_weights(tmp_path / f"none{ending}")


def test_averaged_weights_are_taken_with_a_word(state, tmp_path, caplog):
    path = write(tmp_path / "a.pth", {"model": state, "model_ema": state, "epoch": 1})
    read_weights(path)
    assert f"{path}: takes the averaged weights under 'model_ema', not those under 'model'" in caplog.text


BROKEN = {
    "NaN": (lambda v: v.index_fill(0, torch.tensor([0]), torch.nan), "layer1.0.conv1.weight holds NaN or infinity"),
    "infinity": (
        lambda v: v.index_fill(0, torch.tensor([0]), torch.inf),
        "layer1.0.conv1.weight holds NaN or infinity",
    ),
    "complex": (lambda v: v.to(torch.complex64), "layer1.0.conv1.weight is complex64"),
    "int8": (lambda v: (100 * v).to(torch.int8), "layer1.0.conv1.weight int8 instead of float32"),
    "bool": (lambda v: v > 0, "layer1.0.conv1.weight bool instead of float32"),
}


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", BROKEN)
def test_numbers_that_are_no_weights_are_refused_by_name(kind, ending, state, tmp_path):
    change, message = BROKEN[kind]
    path = write(tmp_path / f"a{ending}", {**state, "layer1.0.conv1.weight": change(state["layer1.0.conv1.weight"])})
    for load in (
        lambda: load_model("test_resnet", path),
        lambda: load_weights(timm.create_model("test_resnet", num_classes=5), path),
        lambda: load_backbone(timm.create_model("test_resnet", num_classes=5), path, "fc"),
        lambda: load_pretrained(timm.create_model("test_resnet", num_classes=5), path),
    ):
        with pytest.raises(ValueError, match=f"a{ending}.*{message}"):
            load()


def test_numbers_of_half_precision_are_weights(state, tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    found = load_model("test_resnet", write(tmp_path / "a.safetensors", half)).state_dict()
    assert all(torch.equal(found[key], half[key].to(value.dtype)) for key, value in state.items())


@pytest.mark.parametrize(
    "value", [torch.zeros(2).to_sparse(), torch.zeros(1).expand(10**9), torch.empty(3, device="meta")],
    ids=["sparse", "expanded", "meta"],
)  # fmt: skip
def test_tensors_that_are_not_plain_numbers_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match=r"a\.pth: 1 tensors cannot be used: w "):
        read_weights(write(tmp_path / "a.pth", {"w": value}))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (3, 3, 3, 3, 3)])
@pytest.mark.parametrize("key", ["patch_embed.proj.0.weight", "layers.0.blocks.0.attn.qkv.weight",
                                 "layers.9.blocks.0.attn.qkv.weight", "head.weight"])  # fmt: skip
def test_the_authors_names_with_other_shapes_are_refused(key, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(timm, "list_models", lambda *args: ["secvit_nano"])
    model = timm.create_model("secvit_nano", num_classes=7)
    theirs = {**to_authors(model.state_dict(), heads_of(model)), key: torch.zeros(shape)}
    path = write(tmp_path / "a.safetensors", theirs)
    with pytest.raises(ValueError, match=r"a\.safetensors does not fit secvit_nano"):
        load_model("secvit_nano", path)
    with pytest.raises(ValueError, match=r"a\.safetensors does not fit secvit_nano"):
        convert.convert(path, tmp_path / "b.safetensors", "secvit_nano")


def test_a_file_that_unpacks_to_far_more_is_refused(tmp_path):
    path, file = write(tmp_path / "a.pth", {"w": torch.zeros(1000)}), io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, bytes(2**26) if info.filename.endswith("data/0") else old.read(info))
    path.write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=r"a\.pth: refused, because it unpacks to 67,\d+,\d+ bytes"):
        read_weights(path)


def test_convert_names_a_model_that_does_not_exist(tmp_path, capsys):
    source = write(tmp_path / "a.safetensors", {"patch_embed.proj.0.weight": torch.zeros(2)})
    assert main(["convert", str(source), str(tmp_path / "b.safetensors"), "--model", "secvit_smal"]) == 2
    assert "no model 'secvit_smal' in timm or secvit; near it: secvit_small" in capsys.readouterr().err


@pytest.mark.slow
def test_every_preset_has_the_tensors_that_are_counted_for_it():
    names = timm.list_models("sec*")
    found = {name: len(timm.create_model(name, num_classes=1, device="meta").state_dict()) for name in names}
    assert {name: count for name, count in found.items() if name in convert.TENSORS} == convert.TENSORS


def test_looking_for_a_preset_builds_those_alone_that_may_fit(monkeypatch):
    built, create = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: built.append(name) or create(name, **options))
    model = create("secvit_nano", num_classes=3)
    assert fitting_models(model.state_dict()) == ["secvit_nano"] and built == ["secvit_nano"]


# -- config.yaml -------------------------------------------------------------------------------

CONFIGS = [
    (b"\xff\xfe\x00", "config.yaml: not UTF-8 text"),
    (b"- a\n- b\n", r'config.yaml: \["a", "b"\], expected an object'),
    (b"model: resnet50\n", "config.yaml: model is 'resnet50', expected an object"),
    (b"model: {name: [1, 2]}\n", r"config.yaml: model: name is \[1, 2\], expected text"),
    (b"model: {name: test_resnet, args: 3}\n", "model: args is 3, expected an object"),
    (b"model: {name: test_resnet, image_size: big}\n", "model: image_size is 'big', expected a number"),
    (b"model: {name: test_resnet, image_size: -3}\n", "model: image_size is -3, expected px of the side"),
    (b"model: {name: test_resnet, image_size: 1.0e+9}\n", "expected px of the side of an image"),
    (b"model: {name: test_resnet, crop_pct: [1]}\n", r"model: crop_pct is \[1\], expected a number"),
    (b"model: {name: test_resnet, crop_pct: 1.0e+308}\n", "crop_pct is 1e.308, expected a part of the short side"),
    (b"model: {name: test_resnet, patch: yes}\n", "model: patch is true, expected an object"),
    (b"classes: cat\n", "config.yaml: classes is 'cat', expected a list of names"),
    (b"classes: [a, {b: 1}, c]\n", "expected a list of names"),
    (b"a: [", "config.yaml: not readable"),
    (b"a: !!python/object/apply:os.system [ls]\n", "config.yaml: not readable"),
    (b"a: 2001-99-99\n", "config.yaml: not readable"),
    (b"[" * 5000, "config.yaml: not readable"),
]


@pytest.mark.parametrize(("content", "message"), CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_of_another_kind_is_refused_with_file_and_field(content, message, state, tmp_path):
    write(tmp_path / "model.safetensors", state)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_model("test_resnet", tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b"model: null\n", b"\xef\xbb\xbfmodel: {name: test_resnet}\n"]
)
def test_a_config_that_says_little_is_no_hindrance(content, state, tmp_path):
    write(tmp_path / "model.safetensors", state)
    (tmp_path / "config.yaml").write_bytes(content)
    assert load_model("test_resnet", tmp_path).num_classes == 5


def test_numbers_as_names_of_classes_become_text(tmp_path):
    (tmp_path / "config.yaml").write_text("classes: [0, 1, '2']\nmodel: {name: x, image_size: '64'}\n")
    found = saved_config(tmp_path)
    assert found["classes"] == ["0", "1", "2"] and found["model"]["image_size"] == 64


def test_arguments_that_no_network_takes_are_refused(state, tmp_path):
    write(tmp_path / "model.safetensors", state)
    for arguments in ("{depths: three}", "{nonsense: 1}", "{embed_dims: [a, b, c, d]}"):
        (tmp_path / "config.yaml").write_text(f"model: {{name: secvit_nano, args: {arguments}}}\n")
        with pytest.raises(ValueError, match="secvit_nano with "):
            load_model("secvit_nano", tmp_path)
