"""A connector in a LLaVA that is loaded already: in, out, saved, quantised, inside peft; and LLaVA-NeXT."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from secvit import connectors
from secvit.vlm import (
    SecLlavaForConditionalGeneration,
    SecLlavaNextForConditionalGeneration,
    SecLlavaProcessor,
    load_connector,
    restore_connector,
    save_connector,
    use_connector,
)
from secvit.vlm.data import IGNORED
from secvit.vlm.small import small_llava
from secvit.vlm.task import VlmTask

PROMPT = "USER: <image>\nwhat is on the left? ASSISTANT:"
every_connector = pytest.mark.parametrize("name", connectors.CONNECTORS)
SEC = {"name": "sec", "num_tokens": 144, "extra_token": None}

# float32 through four layers; sums in another order
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def loaded(stock_folder):
    return LlavaForConditionalGeneration.from_pretrained(stock_folder), AutoProcessor.from_pretrained(stock_folder)


@pytest.fixture
def stock(loaded):
    """A LLaVA of one's own to change."""
    return copy.deepcopy(loaded[0]), loaded[1]


def logits(model, processor, pictures, prompt: str = PROMPT):
    inputs = processor(images=pictures[:1], text=[prompt], return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def tokens_of(name: str) -> int:
    return 576 if name == "mlp" else 144


def test_pixel_shuffle_starts_as_the_average_of_neighbours(stock, pictures):
    model, processor = stock
    pixels = processor.image_processor(pictures[:1], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        linear_1 = model.model.multi_modal_projector.linear_1
        use_connector(model, processor, "pixel_shuffle", 144)
        given = model.model.connector_inputs(pixels)[1]
        found = model.model.multi_modal_projector.linear_1(
            model.model.multi_modal_projector.reduce(given["tokens"], None, given["grid"], False)[0]
        )
        means = given["tokens"].unflatten(1, (12, 2, 12, 2)).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(found, linear_1(means), **CLOSE)


def from_stock(folder, name: str, **options):
    # pixel shuffle stacks four tokens on top of each other, for which the MLP of a checkpoint is too narrow
    connector = {**SEC, "name": name, "num_tokens": tokens_of(name)}
    return SecLlavaForConditionalGeneration.from_pretrained(
        folder, connector=connector, ignore_mismatched_sizes=name == "pixel_shuffle", **options
    )


@every_connector
def test_a_stock_checkpoint_lacks_the_connectors_own_weights_and_no_others(stock_folder, name):
    model, report = from_stock(stock_folder, name, output_loading_info=True)
    own = {f"model.multi_modal_projector.pool.{key}" for key in model.model.multi_modal_projector.pool.state_dict()}
    assert set(report["missing_keys"]) == own
    assert not report["unexpected_keys"]
    reshaped = {key for key, *_ in report["mismatched_keys"]}
    assert reshaped == ({"model.multi_modal_projector.linear_1.weight"} if name == "pixel_shuffle" else set())


@every_connector
def test_weights_that_a_checkpoint_lacks_start_as_the_connector_starts(stock_folder, name):
    connector = from_stock(stock_folder, name).model.multi_modal_projector
    fresh = connectors.create(**connector.options).pool.state_dict()
    for key, found in connector.pool.state_dict().items():
        mine, norm = found.float().norm(), fresh[key].float().norm()
        # the same constant, or numbers drawn anew from the same distribution: few make a norm that varies
        assert norm / 2 <= mine <= norm * 2, key


def test_a_loaded_llava_and_one_loaded_with_the_connector_say_the_same(stock, stock_folder, pictures):
    model, processor = stock
    processor = use_connector(model, processor)
    other = SecLlavaForConditionalGeneration.from_pretrained(stock_folder, connector=SEC)
    assert torch.equal(logits(model, processor, pictures), logits(other, processor, pictures))


def test_as_many_tokens_as_patches_leave_what_llava_says(stock, pictures):
    model, processor = stock
    before = logits(model, processor, pictures)
    processor = use_connector(model, processor, "mlp", 576)
    assert torch.equal(logits(model, processor, pictures), before)


@every_connector
def test_restoring_gives_back_the_llava_that_was(stock, pictures, name):
    model, processor = stock
    before, weights = logits(model, processor, pictures), model.state_dict()
    changed = use_connector(model, processor, name, tokens_of(name))
    assert type(model) is SecLlavaForConditionalGeneration
    assert (logits(model, changed, pictures).shape == before.shape) is (name == "mlp")
    processor = restore_connector(model, changed)
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    assert model.state_dict().keys() == weights.keys()
    assert torch.equal(logits(model, processor, pictures), before)


def test_tokens_of_several_layers_lie_side_by_side_as_in_llava(tokenizer, pictures):
    stock, processor = small_llava(tokenizer, connector=None, image_size=32, dim=32)
    stock.config.vision_feature_layer = [-2, 1]
    model = LlavaForConditionalGeneration(stock.config).eval()
    before = logits(model, processor, pictures)
    changed = use_connector(model, processor, "mlp", 64)
    assert torch.equal(logits(model, changed, pictures), before)
    changed = use_connector(model, processor, "evit", 16)
    assert logits(model, changed, pictures).isfinite().all()


def test_a_connector_can_be_changed_for_another(stock, pictures):
    model, processor = stock
    linear = model.model.multi_modal_projector.linear_1
    for tokens in (144, 64):
        processor = use_connector(model, processor, "sec", tokens)
        assert model.model.multi_modal_projector.linear_1 is linear
        assert processor.num_image_tokens == model.config.image_seq_length == tokens
        logits(model, processor, pictures)


def test_saved_after_use_connector_it_loads_through_the_auto_classes(stock, pictures, tmp_path):
    model, processor = stock
    processor = use_connector(model, processor)
    with torch.no_grad():
        model.model.multi_modal_projector.pool.requires_grad_(True)
        for p in model.model.multi_modal_projector.parameters():
            p.add_(0.01 * torch.randn_like(p))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, same = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(same) is SecLlavaProcessor
    assert torch.equal(logits(model, processor, pictures), logits(again, same, pictures))
    # and LLaVA's own classes come back from what was loaded, too
    stock_processor = restore_connector(again, same)
    assert type(again) is LlavaForConditionalGeneration
    assert logits(again, stock_processor, pictures).isfinite().all()


def test_untrained_connectors_are_announced(stock, caplog):
    with caplog.at_level(logging.WARNING, logger="secvit.vlm.adapt"):
        use_connector(*stock)
    assert "not trained" in caplog.text


def test_the_processor_of_before_is_told_apart(stock, pictures):
    model, processor = stock
    use_connector(model, processor)
    with pytest.raises(
        ValueError, match="576 image tokens instead of the 144 .* processor that use_connector returned"
    ):
        logits(model, processor, pictures)


def test_more_tokens_than_patches_leave_the_model_as_it_was(stock, pictures):
    model, processor = stock
    with pytest.raises(ValueError, match="576 tokens cannot give 600"):
        use_connector(model, processor, num_tokens=600)
    assert type(model) is LlavaForConditionalGeneration
    assert logits(model, processor, pictures).isfinite().all()


def test_other_models_are_told_which_are_supported(stock):
    with pytest.raises(NotImplementedError, match="LlamaModel has no place.*LlavaForConditionalGeneration, LlavaNext"):
        use_connector(stock[0].model.language_model)


def test_a_foreign_processor_leaves_the_model_as_it_was(stock, tokenizer):
    with pytest.raises(ValueError, match=r"no LLaVA's processor; pass AutoProcessor"):
        use_connector(stock[0], tokenizer)
    assert type(stock[0]) is LlavaForConditionalGeneration


def test_nothing_to_restore_or_save_is_said(stock, tmp_path):
    with pytest.raises(ValueError, match="no connector to take out"):
        restore_connector(stock[0])
    with pytest.raises(ValueError, match="no connector to save"):
        save_connector(stock[0], tmp_path)


def test_a_connector_alone_goes_from_one_llava_to_its_twin(loaded, pictures, tmp_path):
    (trained, processor), twin = map(copy.deepcopy, (loaded, loaded[0]))
    new = use_connector(trained, processor, "sec", 144, extra_token="cls", arrangement="sequential")
    with torch.no_grad():
        for p in trained.model.multi_modal_projector.parameters():
            p.add_(0.01 * torch.randn_like(p))
    save_connector(trained, tmp_path)
    also = load_connector(twin, processor, tmp_path)
    assert torch.equal(logits(trained, new, pictures), logits(twin, also, pictures))


def test_a_connector_of_other_widths_is_refused_and_changes_nothing(loaded, tokenizer, tmp_path):
    narrow, _ = small_llava(tokenizer, "sec", 16, image_size=32, dim=32)
    save_connector(narrow, tmp_path)
    twin = copy.deepcopy(loaded[0])
    with pytest.raises(ValueError, match="does not fit this LlavaForConditionalGeneration: .*of another shape"):
        load_connector(twin, None, tmp_path)
    assert type(twin) is LlavaForConditionalGeneration
    with pytest.raises(ValueError, match="no such file; give the folder that save_connector wrote"):
        load_connector(twin, None, tmp_path / "elsewhere")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_with_a_connector_of_the_same_type(stock_folder, pictures, dtype):
    model = SecLlavaForConditionalGeneration.from_pretrained(stock_folder, connector=SEC, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_connector_in_float32_takes_a_tower_in_bfloat16(stock, pictures):
    model, processor = stock
    processor = use_connector(model.bfloat16(), processor)
    model.model.multi_modal_projector.float()
    assert logits(model, processor, pictures).isfinite().all()


# peft asks transformers by a name that transformers is giving up
in_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@in_peft
def test_lora_and_a_trained_connector_come_back(loaded, pictures, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    (model, processor), fresh = map(copy.deepcopy, (loaded, loaded[0]))
    new = use_connector(model, processor)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["multi_modal_projector"])
    tuned = peft.get_peft_model(model, lora)
    trained = [key for key, p in tuned.named_parameters() if p.requires_grad]
    assert any("multi_modal_projector" in key and "pool" in key for key in trained)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn_like(p))
    tuned.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="peft holds a part of this connector"):
        save_connector(tuned, tmp_path)
    use_connector(fresh, processor)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(logits(again, new, pictures), logits(tuned, new, pictures), **CLOSE)
    # and the two become one checkpoint
    merged = again.merge_and_unload()
    assert type(merged) is SecLlavaForConditionalGeneration
    torch.testing.assert_close(logits(merged, new, pictures), logits(tuned, new, pictures), **CLOSE)


@in_peft
def test_a_connector_goes_into_a_model_inside_peft(stock, pictures, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    model, processor = stock
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    processor = use_connector(tuned, processor)
    assert all(p.requires_grad for p in model.model.multi_modal_projector.pool.parameters())
    assert logits(tuned, processor, pictures).isfinite().all()
    save_connector(tuned, tmp_path)
    assert (tmp_path / "connector.safetensors").is_file()


def in_4_bits(kind, folder, **options):
    """In training mode: in the other bitsandbytes packs weights for CPUs at their first use, and saves them damaged."""
    return kind.from_pretrained(folder, **options).train()


FOUR_BITS = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)}


def test_a_llava_in_4_bits_takes_a_connector_and_comes_back(stock_folder, pictures, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    model = in_4_bits(LlavaForConditionalGeneration, stock_folder, **FOUR_BITS)
    assert "4bit" in type(model.model.multi_modal_projector.linear_1).__name__
    processor = AutoProcessor.from_pretrained(stock_folder)
    before = logits(model, processor, pictures)
    same = use_connector(model, processor, "mlp", 576)
    torch.testing.assert_close(logits(model, same, pictures), before, **CLOSE)
    new = use_connector(model, processor)
    assert all(p.requires_grad for p in model.model.multi_modal_projector.parameters())
    model.save_pretrained(tmp_path)
    again = in_4_bits(AutoModelForImageTextToText, tmp_path)
    assert "4bit" in type(again.model.language_model.layers[0].self_attn.q_proj).__name__
    torch.testing.assert_close(logits(again, new, pictures), logits(model, new, pictures), **CLOSE)
    restore_connector(model, new)
    torch.testing.assert_close(logits(model, processor, pictures), before, **CLOSE)


def test_a_saved_connector_loads_in_4_bits_and_stays_plain(stock, pictures, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    model, processor = stock
    processor = use_connector(model, processor)
    model.save_pretrained(tmp_path / "whole")
    quantised = in_4_bits(AutoModelForImageTextToText, tmp_path / "whole", **FOUR_BITS)
    kinds = {type(module).__name__ for module in quantised.model.multi_modal_projector.modules()}
    assert not any("4bit" in kind for kind in kinds)
    expected = logits(quantised, processor, pictures)
    quantised.save_pretrained(tmp_path / "small")
    again = in_4_bits(AutoModelForImageTextToText, tmp_path / "small")
    torch.testing.assert_close(logits(again, processor, pictures), expected, **CLOSE)


def test_llava_next_gets_its_tokens_tile_by_tile(tokenizer, pictures, tmp_path):
    torch.manual_seed(0)
    model, processor = small_llava(tokenizer, connector=None, next_tiles=True, image_size=32, dim=32)
    before = logits(model, processor, pictures[1:])
    new = use_connector(model, processor, "sec", 16, extra_token="cls")
    assert type(model) is SecLlavaNextForConditionalGeneration
    inputs = new(images=pictures, text=[PROMPT, PROMPT], padding=True, return_tensors="pt")
    # a square is itself and four tiles, a wide one itself and two
    assert inputs["pixel_values"].shape[:2] == (2, 5)
    assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [5 * 17, 3 * 17]
    with torch.no_grad():
        together = model(**inputs).logits[:, -1]
    for picture, last in zip(pictures, together):
        torch.testing.assert_close(logits(model, new, [picture])[0, -1], last, **CLOSE)
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3
    merged = model.merged(inputs["pixel_values"], inputs["image_sizes"])
    assert merged.coordinates.shape == (8, 16, 2)
    model.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path)
    again, same = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(logits(again, same, pictures), logits(model, new, pictures))
    processor = restore_connector(model, new)
    assert torch.equal(logits(model, processor, pictures[1:]), before)


def test_llava_next_trains_through_what_it_answers_by(tokenizer, pictures):
    model, processor = small_llava(tokenizer, connector=None, next_tiles=True, image_size=32, dim=32)
    processor = use_connector(model, processor, "sec", 16)
    model.model.vision_tower.requires_grad_(False)
    texts = [f"<image> what is it? {answer}" for answer in ("a cat", "two dogs")]
    inputs = processor(images=pictures, text=texts, return_tensors="pt", padding=True)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.image_token_id, IGNORED)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, IGNORED)
    learned = list(model.model.multi_modal_projector.parameters())
    losses = [model(**inputs, labels=labels).loss, VlmTask(model)({**inputs, "labels": labels})["loss"]]
    torch.testing.assert_close(*losses)
    for expected, found in zip(*(torch.autograd.grad(loss, learned) for loss in losses), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_stock_llava_next_checkpoint_lacks_the_connectors_own_weights_and_no_others(tokenizer, tmp_path):
    stock, _ = small_llava(tokenizer, connector=None, next_tiles=True, image_size=32, dim=32)
    stock.save_pretrained(tmp_path)
    model, report = SecLlavaNextForConditionalGeneration.from_pretrained(
        tmp_path, connector={**SEC, "num_tokens": 16}, output_loading_info=True
    )
    own = {f"model.multi_modal_projector.pool.{key}" for key in model.model.multi_modal_projector.pool.state_dict()}
    assert set(report["missing_keys"]) == own
    assert not report["unexpected_keys"]
