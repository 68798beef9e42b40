"""A LLaVA made with a connector: 24 x 24 patches, random weights, every connector."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

from secvit import connectors
from secvit.vlm import SecLlavaConfig, SecLlavaForConditionalGeneration, SecLlavaModel, SecLlavaProcessor
from secvit.vlm.llava import cls_attention
from secvit.vlm.small import small_llava
from tests.conftest import since

PROMPT = "USER: <image>\nwhat is on the left? ASSISTANT:"
every_connector = pytest.mark.parametrize("name", connectors.CONNECTORS)

# float32 through four layers; sums in another order
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def made(tokenizer):
    @functools.cache
    def make(name: str):
        torch.manual_seed(0)
        return small_llava(tokenizer, name, 576 if name == "mlp" else 144)

    return make


def greedy(model, inputs, tokens=4, **options):
    return model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)


@every_connector
def test_an_image_takes_the_tokens_that_its_connector_makes(made, pictures, name):
    model, processor = made(name)
    inputs = processor(images=pictures[:1], text=[PROMPT], return_tensors="pt")
    count = model.config.image_seq_length
    assert count == model.model.multi_modal_projector.num_output_tokens(576)
    assert count == (577 if name == "mlp" else 145)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == count
    assert processor._get_num_multimodal_tokens([(60, 130)])["num_image_tokens"] == [count]
    with torch.no_grad():
        outputs = model(**inputs, labels=inputs["input_ids"])
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    assert [tokens.shape for tokens in features] == [(count, 64)]
    assert outputs.loss.isfinite()


@every_connector
def test_gradients_reach_every_weight_of_the_connector(made, pictures, name):
    model, processor = made(name)
    inputs = processor(images=pictures[:1], text=[PROMPT], return_tensors="pt")
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    missing = [key for key, p in model.model.multi_modal_projector.named_parameters() if p.grad is None]
    assert not missing


@every_connector
def test_generation_is_the_same_with_and_without_a_cache(made, pictures, name):
    model, processor = made(name)
    inputs = processor(images=pictures[:1], text=[PROMPT], return_tensors="pt")
    assert torch.equal(greedy(model, inputs), greedy(model, inputs, use_cache=False))


@every_connector
def test_beams_of_one_image_share_its_tokens(made, pictures, name):
    model, processor = made(name)
    inputs = processor(images=pictures[:1], text=[PROMPT], return_tensors="pt")
    beams = greedy(
        model, inputs, 3, num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True
    )
    # the score of a beam is the mean log likelihood of its tokens under the model, asked again without beams
    ids = beams.sequences[:1]
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
    chosen = logits[0, -4:-1].log_softmax(-1).gather(-1, ids[0, -3:, None])
    torch.testing.assert_close(beams.sequences_scores[0], chosen.mean(), **CLOSE)


@every_connector
def test_a_batch_padded_on_the_left_answers_as_one_by_one(made, pictures, name):
    model, processor = made(name)
    prompts = [PROMPT, "USER: <image>\nand <image>\nhow many dogs? ASSISTANT:", "USER: hello ASSISTANT:"]
    seen = [[pictures[0]], [pictures[1], pictures[0]], []]
    batch = processor(images=seen[0] + seen[1], text=prompts, padding=True, return_tensors="pt")
    assert not batch["attention_mask"][:, 0].all()
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        for prompt, images, logits in zip(prompts, seen, together):
            alone = processor(images=images or None, text=[prompt], return_tensors="pt")
            torch.testing.assert_close(model(**alone).logits[0, -1], logits, **CLOSE)


@every_connector
def test_saved_and_loaded_through_the_auto_classes_it_says_the_same(made, pictures, tmp_path, name):
    model, processor = made(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    same = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is SecLlavaForConditionalGeneration
    assert type(same) is SecLlavaProcessor
    inputs = processor(images=pictures, text=[PROMPT, PROMPT], return_tensors="pt")
    repeated = same(images=pictures, text=[PROMPT, PROMPT], return_tensors="pt")
    assert all(torch.equal(inputs[key], repeated[key]) for key in inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**repeated).logits)


def test_config_and_inner_model_load_through_the_auto_classes(made, tmp_path):
    model, _ = made("sec")
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SecLlavaConfig
    assert config.connector == {"name": "sec", "num_tokens": 144, "extra_token": "cls"}
    inner = AutoModel.from_pretrained(tmp_path)
    assert type(inner) is SecLlavaModel
    expected = model.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in inner.state_dict().items())


def test_the_pipeline_of_transformers_answers(made, pictures):
    model, processor = made("sec")
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    text = ask(images=pictures[0], text=PROMPT, max_new_tokens=3, return_full_text=False)[0]["generated_text"]
    inputs = processor(images=pictures[:1], text=[PROMPT], return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=3)[0, inputs["input_ids"].shape[1] :]
    assert text == processor.decode(expected, skip_special_tokens=True)


@since("transformers", "5.23", "marks answers behind images in their place")
def test_the_chat_template_marks_the_answer_and_nothing_else(made, pictures):
    _, processor = made("sec")
    question = {"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "what?"}]}
    told = {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    whole = processor.apply_chat_template([question, told], return_assistant_tokens_mask=True, **options)
    asked = processor.apply_chat_template([question], add_generation_prompt=True, **options)
    ids = whole["input_ids"][0]
    learned = ids[torch.as_tensor(whole["assistant_masks"])[0].bool()]
    assert processor.decode(learned) == " a cat</s>"
    assert torch.equal(torch.cat([asked["input_ids"][0], learned]), ids)


def test_the_attention_of_cls_is_the_towers_own(made, pictures, tokenizer):
    model, processor = made("sec")
    tower = model.model.vision_tower
    pixels = processor(images=pictures[:1], text=[PROMPT], return_tensors="pt")["pixel_values"]
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        seen = tower(pixels, output_hidden_states=True, output_attentions=True)
        row = cls_attention(tower.encoder.layers[1], seen.hidden_states[1])
    tower.set_attn_implementation("sdpa")
    # hidden_states[-2], the tokens of the connector, leave layer 1 of three
    torch.testing.assert_close(row, seen.attentions[1].mean(1)[:, 0, 1:], rtol=1e-5, atol=1e-8)


def test_merged_tells_of_which_patches_each_token_is_made(made, pictures):
    model, processor = made("sec")
    pixels = processor(images=pictures, text=[PROMPT] * 2, return_tensors="pt")["pixel_values"]
    merged = model.merged(pixels)
    assert merged.weights.shape == (2, 144, 576)
    assert merged.coordinates.shape == (2, 144, 2)
    # untrained, each token is the mean of its four
    torch.testing.assert_close(merged.weights.max(-1).values, torch.full((2, 144), 0.25), rtol=1e-5, atol=0)


def test_more_tokens_than_patches_are_refused_before_a_weight_is_made(tokenizer):
    with pytest.raises(ValueError, match="576 tokens cannot give 600"):
        small_llava(tokenizer, "sec", 600)


def test_a_tower_without_cls_is_told_of_other_extra_tokens(tokenizer, pictures):
    from transformers import LlamaConfig, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    pixels = torch.zeros(1, 3, 32, 32)
    with_cls = {"name": "sec", "num_tokens": 4, "extra_token": "cls"}
    model = SecLlavaForConditionalGeneration(SecLlavaConfig(connector=with_cls, vision_config=vision, text_config=text))
    with pytest.raises(ValueError, match=r"no \[cls\]; choose extra_token='mean'"):
        model.get_image_features(pixels)
    mean = {**with_cls, "extra_token": "mean"}
    model = SecLlavaForConditionalGeneration(SecLlavaConfig(connector=mean, vision_config=vision, text_config=text))
    assert model.get_image_features(pixels).pooler_output[0].shape == (5, 32)


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("USER: what? ASSISTANT:", 1, r"\[0\] <image> in the prompts for 1 image"),
        ("USER: <image> <image> what? ASSISTANT:", 1, r"\[2\] <image> in the prompts for 1 image"),
    ],
)
def test_prompts_that_do_not_name_their_images_are_refused(made, pictures, prompt, images, message):
    _, processor = made("sec")
    with pytest.raises(ValueError, match=message):
        processor(images=pictures[:images], text=[prompt], return_tensors="pt")


def test_images_given_by_prompt_are_counted_by_prompt(made, pictures):
    _, processor = made("sec")
    with pytest.raises(ValueError, match=r"prompt 0 has 2 <image> for 1 image"):
        processor(images=[pictures[:1], pictures], text=["<image> <image>", "<image>"], return_tensors="pt")


def test_a_prompt_cut_to_a_length_is_told_so(made, pictures):
    model, processor = made("sec")
    inputs = processor(images=pictures[:1], text=[PROMPT], return_tensors="pt")
    inputs["input_ids"] = inputs["input_ids"][:, :100]
    inputs["attention_mask"] = inputs["attention_mask"][:, :100]
    with pytest.raises(ValueError, match=r"instead of the 145 that the connector makes .* max_length"):
        model(**inputs)
