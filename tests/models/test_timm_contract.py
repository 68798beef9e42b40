"""What timm asks of a model, and what its users do with one.

timm 1.0.31's own tests/test_models.py passes on these models too; timm_suite.py says how to run it.
"""

import copy
import inspect
import re

import pytest
import timm
import torch
from timm.models import get_notrace_functions, get_notrace_modules, group_parameters, model_parameters, save_for_hf
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from secvit.models.convert import checkpoint_filter_fn

NAME = "secvit_nano"


def nano(**arguments):
    return timm.create_model(NAME, **arguments)


def image(height=40, width=33, batch=2):
    return torch.randn(batch, 3, height, width)


@pytest.fixture
def model():
    return nano().eval()


@pytest.mark.parametrize("size", [(96, 96), (75, 100), (33, 65), (1, 1)])
@pytest.mark.parametrize("name", [NAME, "secvit_tiny"])
def test_pyramid_has_the_strides_and_channels_it_announces(name, size):
    pyramid = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = pyramid(image(*size))
    assert [m.shape[1] for m in maps] == pyramid.feature_info.channels()
    for m, stride in zip(maps, pyramid.feature_info.reduction(), strict=True):
        assert tuple(m.shape[2:]) == tuple(-(-s // stride) for s in size)
    assert pyramid.feature_info.reduction() == ([2, 4, 8, 16] if name == NAME else [4, 8, 16, 32])


def test_pyramid_getter_and_intermediates_are_the_same_maps():
    x = image().double()
    model = nano().double().eval()
    hooked, getter = (nano(features_only=True, feature_cls=c).double().eval() for c in (None, "getter"))
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True)
        for pyramid in (hooked, getter):
            network = getattr(pyramid, "model", pyramid)
            state = {
                re.sub(r"^(stem|stages)\.", r"\1_", k) if network is hooked else k: v
                for k, v in model.state_dict().items()
            }
            network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()})
            for found, true in zip(pyramid(x), expected, strict=True):
                # timm's FeatureListNet leaves the stem in another memory format: float64 sums in another order
                torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("indices", [(0, 2), (1,), (3,), (-2, -1)])
def test_pyramid_gives_the_stages_asked_for(indices):
    stages = [i % 4 for i in indices]
    pyramid = nano(features_only=True, out_indices=indices).eval()
    with torch.no_grad():
        assert [m.shape[1] for m in pyramid(image())] == [(32, 64, 128, 256)[i] for i in stages]


def test_intermediates_end_in_forward_features(model):
    x = image()
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        assert torch.equal(final, maps[-1])
        chosen = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
        last = model.forward_intermediates(x, indices=2, intermediates_only=True)
        early, (one,) = model.forward_intermediates(x, indices=[1], stop_early=True, norm=True)
    assert [torch.equal(a, b) for a, b in zip(chosen, (maps[0], maps[2]), strict=True)] == [True, True]
    assert [torch.equal(a, b) for a, b in zip(last, maps[2:], strict=True)] == [True, True]
    assert torch.equal(one, maps[1])
    assert torch.equal(early, maps[1])


def test_intermediates_in_another_layout_are_refused(model):
    with pytest.raises(ValueError, match="output_fmt=NHWC; SECViT gives NCHW"):
        model.forward_intermediates(image(), output_fmt="NHWC")


@pytest.mark.parametrize("index", range(4))
def test_pruning_keeps_the_maps_and_leaves_nothing_unused(model, index):
    x = image()
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
    for prune_norm in (False, True):
        pruned = copy.deepcopy(model)
        taken = pruned.prune_intermediate_layers([index], prune_norm=prune_norm)
        assert pruned.num_features == pruned.head_hidden_size == maps[index].shape[1]
        with torch.no_grad():
            (found,) = pruned.forward_intermediates(x, indices=taken, intermediates_only=True)
            assert torch.equal(found, maps[index])
            assert torch.equal(pruned.forward_features(x), found)
            assert torch.equal(pruned(x), found)
        pruned.train()(x).sum().backward()
        assert not [name for name, p in pruned.named_parameters() if p.grad is None]
        pruned.reset_classifier(7, "avg")
        assert pruned(x).shape == (2, 7)


def test_pruning_after_the_last_stage_may_keep_the_head(model):
    x = image()
    with torch.no_grad():
        expected = model(x)
        model.prune_intermediate_layers([3], prune_head=False)
        assert torch.equal(model(x), expected)


def test_head_widths_are_what_they_are_said_to_be(model):
    x = image()
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features == 256
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size) == (2, 512)
        assert model.get_classifier() is model.head.fc
        assert torch.equal(model.forward_head(features), model(x))


def test_reset_classifier_keeps_pooling_and_makes_any_number_of_classes(model):
    assert inspect.signature(model.reset_classifier).parameters["global_pool"].default is None
    x = image()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model(x).shape == (2, 7)
        model.reset_classifier(0)
        assert torch.equal(model(x), features)
        model.reset_classifier(0, "")
        assert model(x).shape == (2, 512, 3, 3)
        model.reset_classifier(5, "catavgmax")
        assert model.head_hidden_size == 1024
        assert model(x).shape == (2, 5)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_pooling_may_be_chosen_at_creation(pool):
    model = nano(global_pool=pool, num_classes=5).eval()
    with torch.no_grad():
        assert model(image()).shape == (2, 5)
        pre_logits = model.forward_head(model.forward_features(image()), pre_logits=True)
    assert pre_logits.shape[1] == model.head_hidden_size


def test_a_model_without_classes_gives_pooled_features():
    with torch.no_grad():
        assert nano(num_classes=0).eval()(image()).shape == (2, 512)
        assert nano(num_classes=0, global_pool="").eval()(image()).shape == (2, 512, 3, 3)


def test_reset_classifier_keeps_device_dtype_mode_and_frozen_weights():
    model = nano(device="meta", dtype=torch.float64).eval().requires_grad_(False)
    model.reset_classifier(0, "")
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    model.reset_classifier(3, "avg")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="not_an_argument"):
        nano(not_an_argument=1)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", [NAME, "secvit_base"])
def test_groups_for_layer_decay_cover_every_parameter_in_depth_order(name, coarse):
    model = timm.create_model(name, device="meta")
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    names = [n for members in groups.values() for n in members]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    layer = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert layer["stem.0.weight"] == 0
    assert layer["stem.0.weight"] < layer["stages.0.blocks.1.attn.qkv.weight"] < layer["stages.1.blocks.0.cpe.weight"]
    assert layer["stages.1.downsample.0.weight"] <= layer["stages.1.blocks.0.cpe.weight"]
    last = layer["stages.3.blocks.0.ffn.fc1.weight"]
    assert last <= layer["head.proj.weight"] <= layer["head.fc.weight"]
    assert last < layer["head.fc.weight"]
    if not coarse:
        assert layer["stages.2.blocks.0.cpe.weight"] < layer["stages.2.blocks.1.cpe.weight"]


def test_optimizers_with_layer_decay_hold_every_parameter_once(model):
    from timm.optim import create_optimizer_v2

    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    undecayed = [p for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]]
    assert all(p.dim() == 1 for p in undecayed)


def test_clipping_may_leave_the_head_out(model):
    assert len(list(model_parameters(model, exclude_head=True))) < len(list(model.parameters()))


@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_changes_neither_outputs_nor_gradients(features_only):
    x = image()
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = nano(features_only=features_only).train()
        model.set_grad_checkpointing(checkpointing)
        out = model(x)
        out = torch.cat([m.flatten() for m in out]) if features_only else out
        out.square().mean().backward()
        results.append([out, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for plain, checkpointed in zip(*results, strict=True):
        # the same operations in the same order; batched sums may still differ in the last bit
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_everything_is_made_on_the_device_and_in_the_dtype_asked_for(dtype):
    model = nano(device="meta", dtype=dtype, layer_scale=(True,) * 4)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {t.device.type for t in tensors.values()} == {"meta"}
    assert {t.dtype for name, t in tensors.items() if not name.endswith("num_batches_tracked")} == {dtype}
    assert model(torch.empty(2, 3, 40, 33, device="meta", dtype=dtype)).shape == (2, 10)


def test_dtype_may_change_after_a_forward(model):
    x = image()
    with torch.no_grad():
        expected = model(x)
        assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
        # bf16 keeps 8 bits of each weight, so only the type and finiteness are asked for above
        model.float()
        assert model(x).dtype == expected.dtype == torch.float32


def test_init_weights_leaves_nothing_of_what_memory_held():
    model = (
        nano(device="meta", dtype=torch.float64, layer_scale=(False, False, True, True)).to_empty(device="cpu").eval()
    )
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
            else:
                tensor.fill_(-1)
        model.init_weights()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            assert tensor.isfinite().all(), name
            assert name.endswith("num_batches_tracked") <= (not tensor.any()), name
        assert model(image().double()).isfinite().all()


def test_a_headless_sorted_checkpoint_loads_unchanged():
    model, other = (nano(num_classes=0).eval() for _ in range(2))
    state = dict(sorted(model.state_dict().items()))
    other.load_state_dict(checkpoint_filter_fn(state, other))
    x = image()
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    "arguments", [{}, {"num_classes": 4}, {"in_chans": 1}, {"in_chans": 5, "num_classes": 0}], ids=str
)
def test_hub_folders_load_with_other_classes_and_channels(arguments, tmp_path):
    model = nano(num_classes=7, num_clusters=(4, 2, 1), drop_path_rate=0.1).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **arguments).eval()
    assert loaded.stages[0].blocks[0].attn.clustering.num_clusters == 4
    x = image()
    with torch.no_grad():
        if not arguments:
            assert torch.equal(loaded(x), model(x))
        elif "in_chans" not in arguments:
            assert torch.equal(loaded.forward_features(x), model.forward_features(x))
            assert loaded(x).shape == (2, 4)
        else:
            assert loaded(torch.randn(2, arguments["in_chans"], 40, 33)).shape[0] == 2
            assert torch.equal(loaded.stages[0].blocks[0].cpe.weight, model.stages[0].blocks[0].cpe.weight)


def test_cluster_size_survives_a_hub_folder(tmp_path):
    save_for_hf(nano(cluster_size=49), tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert loaded.stages[0].blocks[0].attn.clustering.cluster_size == 49


def traced(model):
    tracer = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    tracer["param_shapes_constant"] = True
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    return create_feature_extractor(
        model, train_return_nodes=[train_nodes[-1]], eval_return_nodes=[eval_nodes[-1]], tracer_kwargs=tracer
    )


def test_traced_model_equals_eager_and_trains(model):
    graph = traced(model)
    for size in ((32, 32), (33, 65)):
        x = image(*size)
        with torch.no_grad():
            (out,) = graph.eval()(x).values()
            assert torch.equal(out, model.eval()(x))
    (out,) = graph.train()(image()).values()
    out.mean().backward()
    assert not [name for name, p in graph.named_parameters() if p.grad is None]


def test_config_names_real_layers():
    for name in (NAME, "secvit_tiny", "secvit_base"):
        config = timm.get_pretrained_cfg(name)
        model = timm.create_model(name, device="meta").eval()
        state = model.state_dict()
        assert f"{config.first_conv}.weight" in state
        assert f"{config.classifier}.weight" in state
        assert model.num_classes == config.num_classes
        features = model.forward_features(torch.empty(1, *config.input_size, device="meta"))
        assert tuple(features.shape[2:]) == config.pool_size
