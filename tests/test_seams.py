"""Where secvit leans on the inside of another library: one short test a seam.

Each says who leans on it and what to do when it moves, so that a new release is understood in seconds:

    python -m pytest tests/test_seams.py
"""

from __future__ import annotations

import functools
import inspect
from importlib.metadata import version

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def seam(library: str, used_in: str, remedy: str):
    """A test whose failure says which library moved, who leans on it and what to do."""

    def decorate(test):
        @functools.wraps(test)
        def told(*args, **kwargs):
            try:
                test(*args, **kwargs)
            except (AssertionError, AttributeError, ImportError, TypeError, KeyError, RuntimeError) as error:
                pytest.fail(
                    f"{library} {version(library)} has moved: {test.__doc__}\n  found: {error!s:.500}\n"
                    f"  used in: src/secvit/{used_in}\n  what to do: {remedy}",
                    pytrace=False,
                )

        if library == "transformers":
            return pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")(told)
        return told

    return decorate


def has(library: str) -> bool:
    try:
        version(library)
    except ImportError:
        return False
    return True


def takes(function, *names: str) -> None:
    missing = set(names) - set(inspect.signature(function).parameters)
    assert not missing, f"{function.__qualname__} takes no {', '.join(sorted(missing))}"


# -- transformers ------------------------------------------------------------------------------------------

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


@seam(
    "transformers", "vlm/llava.py look()", "find how this version returns the input of each layer and its last output"
)
def test_a_tower_returns_the_states_before_each_layer_and_after_the_last():
    """output_hidden_states=True gives layers + 1 states, the input of layer i at place i"""
    import transformers

    for family in ("CLIP", "Siglip"):
        config = getattr(transformers, f"{family}VisionConfig")(**VISION, image_size=8, patch_size=4)
        tower = getattr(transformers, f"{family}VisionModel")(config).eval()
        states = tower(torch.rand(1, 3, 8, 8), output_hidden_states=True, return_dict=True).hidden_states
        assert len(states) == 4
        inner = tower if hasattr(tower, "encoder") else tower.vision_model
        again = inner.encoder.layers[1](states[1], None)
        again = again[0] if isinstance(again, tuple) else again
        torch.testing.assert_close(again, states[2])


@seam("transformers", "vlm/llava.py cls_attention()", "read q, k and the norm before them under their new names")
def test_clips_layers_have_the_parts_that_clss_attention_is_made_of():
    """CLIP's layer is layer_norm1, self_attn with q_proj, k_proj, num_heads, scale"""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = CLIPVisionModel(CLIPVisionConfig(**VISION, image_size=8, patch_size=4))
    layer = (tower if hasattr(tower, "encoder") else tower.vision_model).encoder.layers[0]
    assert isinstance(layer.layer_norm1, nn.LayerNorm)
    assert layer.self_attn.q_proj.out_features == layer.self_attn.k_proj.out_features == 16
    assert layer.self_attn.num_heads == 2
    assert layer.self_attn.scale == 8**-0.5


@seam("transformers", "vlm/llava.py, vlm/next.py", "override what forward asks for the features of images now")
def test_llavas_forward_asks_get_image_features_for_its_pooler_output():
    """a LLaVA's forward calls self.get_image_features(pixel_values=...).pooler_output, and get_placeholder_mask"""
    from transformers import LlavaModel, LlavaNextModel

    for model in (LlavaModel, LlavaNextModel):
        source = inspect.getsource(inspect.unwrap(model.forward))
        assert "self.get_image_features(" in source and "pooler_output" in source
        takes(model.get_placeholder_mask, "input_ids", "inputs_embeds", "image_features")


@seam("transformers", "vlm/families", "find where this version takes an image's tokens and their positions from")
def test_families_take_their_tokens_from_get_image_features():
    """each family's forward calls self.get_image_features(...).pooler_output; Qwen's positions are made a grid a time"""
    from secvit.vlm.families import FAMILIES

    for family in FAMILIES:
        source = inspect.getsource(inspect.unwrap(family.stock.model.forward))
        assert "self.get_image_features(" in source and "pooler_output" in source
        if hasattr(family.stock.model, "get_rope_index"):
            takes(family.stock.model.get_vision_position_ids, "start_position", "grid_thw")
            assert "self.get_vision_position_ids(" in inspect.getsource(family.stock.model.get_rope_index)
        if hasattr(family.stock.model, "pack_image_features"):
            takes(family.stock.model.pack_image_features, "image_features", "image_newline", "vision_aspect_ratio")


@seam("transformers", "vlm/llava.py register()", "register our model types with whatever renames LLaVA's weights now")
def test_llavas_names_in_checkpoints_can_be_registered_for_our_classes():
    """transformers.conversion_mapping has LLaVA's renaming, by model type and by class"""
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    assert get_checkpoint_conversion_mapping("llava")
    takes(register_checkpoint_conversion_mapping, "overwrite")


@seam("transformers", "vlm/llava.py new_connector(), ConnectedModel", "keep our start of a connector in another way")
def test_weights_marked_as_initialised_keep_their_start():
    """_is_hf_initialized on a module keeps init_weights away from it, and _keep_in_fp32_modules names modules"""
    from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

    assert hasattr(PreTrainedModel, "_keep_in_fp32_modules")
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION, image_size=8, patch_size=4))
    layers = [m for m in tower.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        layer._is_hf_initialized = True
        nn.init.constant_(layer.weight, 7.0)
    tower.init_weights()
    assert all((layer.weight == 7.0).all() for layer in layers)


@seam(
    "transformers", "vlm/llava.py SecLlavaProcessor, vlm/next.py, vlm/chat.py", "override what writes placeholders now"
)
def test_processors_ask_their_own_methods_how_many_placeholders_an_image_takes():
    """LlavaProcessor and LlavaNextProcessor have replace_image_token and _get_num_multimodal_tokens"""
    from transformers import LlavaNextProcessor, LlavaProcessor
    from transformers.processing_utils import MultiModalData

    for processor in (LlavaProcessor, LlavaNextProcessor):
        takes(processor.replace_image_token, "image_inputs", "image_idx")
        takes(processor._get_num_multimodal_tokens, "image_sizes")
        takes(processor.validate_inputs, "images", "text")
    takes(MultiModalData, "num_image_tokens", "num_image_patches")


@seam("transformers", "measure/connectors.py Timed", "add the new name to Timed.cache_name")
def test_a_language_model_takes_its_cache_under_the_name_that_it_returns_it_by():
    """the cache is called `cache` (5.24) or `past_key_values`, in and out, and can be cropped"""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    model = LlamaForCausalLM(config).eval()
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    takes(model.forward, name)
    words = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        cache = getattr(model(words[:, :2], use_cache=True), name)
        out = model(words[:, 2:], use_cache=True, **{name: cache}).logits[:, -1]
        torch.testing.assert_close(out, model(words).logits[:, -1])
    cache.crop(-1)
    assert cache.get_seq_length() == 2


@seam("transformers", "vlm/initial.py set_trained()", "call what turns recomputing on now")
def test_a_model_recomputes_activations_when_told_to():
    """activation_checkpointing_enable (5.23) or gradient_checkpointing_enable takes torch's arguments first"""
    from transformers import PreTrainedModel

    new = getattr(PreTrainedModel, "activation_checkpointing_enable", None)
    first = list(inspect.signature(new or PreTrainedModel.gradient_checkpointing_enable).parameters)[1]
    assert first in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")


@seam("transformers", "adapt/hf.py", "find the modules that the attention interface serves by another mark")
def test_attention_modules_of_the_interface_carry_is_causal():
    """attention modules have is_causal, and the config says _attn_implementation after set_attn_implementation"""
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(**VISION, image_size=8, patch_size=4))
    assert sum(hasattr(m, "is_causal") for m in model.modules()) == 3
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


@seam("transformers", "adapt/hf.py, adapt/later.py", "write and read the patch in config.json by another way")
def test_saving_and_loading_of_a_model_go_through_methods_that_can_be_wrapped(tmp_path):
    """save_pretrained writes unknown entries of the config, of parts too, and from_pretrained gives them back"""
    from transformers import CLIPConfig, CLIPModel, modeling_utils

    assert hasattr(modeling_utils.PreTrainedModel.from_pretrained, "__func__")
    text = {**VISION, "vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**VISION, "image_size": 8, "patch_size": 4}))
    assert model.config.vision_config is model.vision_model.config and "vision_config" in model.config.sub_configs
    model.config.vision_config.of_another = {"a": [1]}
    model.save_pretrained(tmp_path)
    assert CLIPModel.from_pretrained(tmp_path).vision_model.config.of_another == {"a": [1]}


@seam("transformers", "vlm/next.py", "count the tiles of a LLaVA-NeXT image by what replaces it")
def test_llava_next_counts_the_tiles_of_an_image():
    """image_size_to_num_patches(size, pinpoints, side) counts the tiles and the overview"""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    assert image_size_to_num_patches([336, 672], [[336, 672], [672, 336]], 336) == 3


# -- timm --------------------------------------------------------------------------------------------------


@seam("timm", "models/secvit.py forward_intermediates()", "take the stages of out_indices by timm's new function")
def test_timm_says_which_stages_out_indices_mean():
    """timm.models._features.feature_take_indices(n, indices) -> (taken, last)"""
    from timm.models._features import feature_take_indices

    assert feature_take_indices(4, (1, -1)) == ([1, 3], 3)


@seam("timm", "adapt/sites.py TIMM_ATTENTION", "change the tuple of classes, and what fused_attn was called")
def test_timms_attention_calls_sdpa_where_fused_attn_is_on():
    """attention classes of plain ViTs have fused_attn and then call scaled_dot_product_attention"""
    from secvit.adapt.sites import TIMM_ATTENTION

    for attention in TIMM_ATTENTION:
        assert "scaled_dot_product_attention" in inspect.getsource(attention.forward), attention.__name__
        assert "fused_attn" in inspect.getsource(attention), attention.__name__


@seam("timm", "adapt/, measure/, vis/", "find the blocks and the prefix tokens of a ViT under their new names")
def test_timms_vit_has_blocks_with_attn_and_counts_its_prefix_tokens():
    """a timm ViT has blocks[i].attn, num_prefix_tokens and forward_intermediates"""
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    assert model.num_prefix_tokens == 1
    assert all(hasattr(block, "attn") for block in model.blocks)
    takes(model.forward_intermediates, "indices")


@seam("timm", "models/sec_deit.py", "pass the attention through whatever replaces attn_layer=")
def test_timms_vit_builds_its_blocks_around_a_given_attention():
    """VisionTransformer takes attn_layer= and embed_layer="""
    from timm.models.vision_transformer import VisionTransformer

    takes(VisionTransformer.__init__, "attn_layer", "embed_layer", "dynamic_img_size")


@seam("timm", "models/saved.py, models/sec_deit.py, models/sec_swin.py", "rename the originals' tensors ourselves")
def test_timm_renames_the_tensors_of_original_vits_and_swins():
    """vision_transformer and swin_transformer have checkpoint_filter_fn(state_dict, model)"""
    from timm.models import swin_transformer, vision_transformer

    for module in (vision_transformer, swin_transformer):
        takes(module.checkpoint_filter_fn, "state_dict", "model")


@seam("timm", "classification/augment.py", "find where a training transform crops, and put RandomCrop there")
def test_the_first_of_timms_training_transforms_crops():
    """create_transform(is_training=True) is a Compose whose first transform is the random resized crop"""
    from timm.data import create_transform

    assert "Crop" in type(create_transform(32, is_training=True).transforms[0]).__name__


# -- torch -------------------------------------------------------------------------------------------------


@seam("torch", "models/packed.py", "nothing breaks: fuse() falls back to F.linear; drop or replace the packed road")
def test_onednns_operators_compute_what_the_layers_do():
    """torch.ops.mkldnn has _reorder_linear_weight, _linear_pointwise and _convolution_pointwise of these arguments"""
    from secvit.models import packed

    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    assert packed._HAS_ONEDNN
    x, weight, bias = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, 5)
    found = torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "gelu", [], "none")
    torch.testing.assert_close(found, F.gelu(F.linear(x, weight, bias)), rtol=1e-5, atol=1e-5)
    image, kernel = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
    found = torch.ops.mkldnn._convolution_pointwise(image, kernel, None, [1, 1], [2, 2], [1, 1], 1, "gelu", [], "none")
    torch.testing.assert_close(found, F.gelu(F.conv2d(image, kernel, None, 2, 1)), rtol=1e-5, atol=1e-5)


@seam("torch", "train/ema.py, train/buffers.py", "write the loops out over the tensors")
def test_lists_of_tensors_are_averaged_and_copied_in_place():
    """torch._foreach_lerp_(a, b, weight=) and torch._foreach_copy_(a, b)"""
    a, b = [torch.zeros(3), torch.ones(2)], [torch.ones(3), torch.zeros(2)]
    torch._foreach_lerp_(a, b, weight=0.25)
    assert a[0].tolist() == [0.25] * 3
    assert a[1].tolist() == [0.75] * 2
    torch._foreach_copy_(a, b)
    assert all(torch.equal(x, y) for x, y in zip(a, b))


@seam("torch", "measure/macs.py", "change _kind(): which operators are linear layers, which attention")
def test_torch_counts_layers_under_the_names_of_their_operators():
    """FlopCounterMode counts linear layers as aten.addmm or aten.mm, attention as products of its own"""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        nn.Linear(4, 5)(torch.empty(3, 4))
        nn.Conv2d(2, 3, 1)(torch.empty(1, 2, 4, 4))
        q = torch.empty(1, 2, 6, 8)
        F.scaled_dot_product_attention(q, q, q)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert counted.pop("aten.addmm") == 2 * 3 * 4 * 5
    assert counted.pop("aten.convolution") == 2 * 2 * 3 * 16
    assert sum(counted.values()) == 2 * 2 * 2 * 6 * 6 * 8


@seam("torch", "adapt/patching.py _Answer", "answer the call in another way")
def test_a_function_mode_sees_calls_of_sdpa():
    """TorchFunctionMode is asked about F.scaled_dot_product_attention as that function"""
    from torch.overrides import TorchFunctionMode

    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        q = torch.rand(1, 1, 2, 2)
        F.scaled_dot_product_attention(q, q, q)
    assert F.scaled_dot_product_attention in seen


@seam("torch", "train/loading.py _from_workers()", "end the loading processes by what the iterator offers now")
def test_the_iterator_over_loading_processes_can_be_shut_down():
    """iter(DataLoader(num_workers=1)) has _shutdown_workers()"""
    from torch.utils.data import DataLoader

    iterator = iter(DataLoader([1, 2, 3], num_workers=1))
    assert next(iterator).tolist() == [1]
    iterator._shutdown_workers()


# -- torchvision, faster-coco-eval, jsonargparse -----------------------------------------------------------


@seam("torchvision", "detection/roi_heads.py, detection/prediction.py", "take the parts from where they are now")
def test_torchvisions_detectors_have_the_parts_that_stages_are_made_of():
    """detection._utils has Matcher and BoxCoder, roi_heads its losses and RoIHeads its steps"""
    from torchvision.models.detection import _utils as parts
    from torchvision.models.detection import roi_heads

    takes(parts.Matcher.__init__, "high_threshold", "low_threshold", "allow_low_quality_matches")
    takes(parts.BoxCoder.__init__, "weights")
    takes(roi_heads.maskrcnn_loss, "mask_logits", "proposals", "gt_masks", "gt_labels", "mask_matched_idxs")
    takes(roi_heads.maskrcnn_inference, "x", "labels")
    takes(roi_heads.paste_masks_in_image, "masks", "boxes", "img_shape")
    for step in ("select_training_samples", "postprocess_detections"):
        assert hasattr(roi_heads.RoIHeads, step)


@seam("faster-coco-eval", "detection/evaluate.py", "read the twelve figures by their new names")
def test_the_evaluator_names_its_figures():
    """COCOeval_faster has run() and stats_as_dict"""
    pytest.importorskip("faster_coco_eval")
    from faster_coco_eval import COCOeval_faster

    from secvit.detection import evaluate

    for name in ("run", "stats_as_dict"):
        if name in inspect.getsource(evaluate):
            assert hasattr(COCOeval_faster, name)


@seam("jsonargparse", "cli.py _explain()", "put the help of a recipe's numbers in by what the parser offers now")
def test_a_parser_lists_its_actions_and_groups():
    """ArgumentParser has _actions with dest and help, and _action_groups with titles"""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--size", type=int, default=3, help="px")
    assert [action.help for action in parser._actions if action.dest == "size"] == ["px"]
    assert all(hasattr(group, "title") for group in parser._action_groups)
