"""Connectors in current families of vision-language models, each a random model of a few ten thousand weights."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from transformers.models.smolvlm import processing_smolvlm

from secvit.connectors import CONNECTORS
from secvit.vlm import load_connector, restore_connector, save_connector, use_connector
from secvit.vlm.families import FAMILIES
from tests.vlm import families

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
T = 6
every_family = pytest.mark.parametrize("name", families.FAMILIES)


@pytest.fixture(autouse=True)
def without_num2words(monkeypatch):
    """SmolVLM's processor wants this package for videos, of which there are none here."""
    monkeypatch.setattr(processing_smolvlm, "num2words", str)


@pytest.fixture(scope="module")
def made():
    """Each family's model and processor, made once."""
    return {}


@pytest.fixture
def stock(made, name):
    """(model, processor) of a family; the model is one's own to change."""
    if name not in made:
        made[name] = families.stock(name)
    return copy.deepcopy(made[name][0]), made[name][1]


def prompts(name, processor, pictures, both: bool = True):
    """One prompt with two images and one with one image; or the first alone."""
    mark = families.PLACEHOLDER.get(name, "<image>")
    images = [[pictures[1], pictures[0]], [pictures[1]]]
    texts = [f"{mark} what is on the left? {mark} two", f"{mark} describe"]
    count = 2 if both else 1
    crops = {"images_kwargs": {"do_pan_and_scan": True}} if name == "gemma3" else {}
    return processor(images=images[:count], text=texts[:count], padding=True, return_tensors="pt", **crops)


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def image_tokens(model, inputs):
    return (inputs["input_ids"] == model.config.image_token_id).sum(dim=1)


@every_family
def test_every_tile_takes_the_tokens_asked_for(stock, name, pictures):
    model, processor = stock
    before = image_tokens(model, prompts(name, processor, pictures))
    ours = use_connector(model, processor, "sec", num_tokens=T)
    inputs = prompts(name, ours, pictures)
    if name == "llava_onevision":  # tiles, and the newline at the end of an image; two images have one tile each
        expected = [2 * (T + 1), 3 * T + 1]
    elif name.startswith("qwen"):
        assert before.tolist() == [24 + 25, 24]
        expected = [2 * T, T]
    else:
        expected = [T * int(count) // families.OWN_TOKENS.get(name, 16) for count in before]
    assert image_tokens(model, inputs).tolist() == expected
    assert logits(model, inputs).isfinite().all()


@pytest.mark.parametrize("name", ["internvl", "qwen3_vl"])
@pytest.mark.parametrize("connector", [one for one in CONNECTORS if one not in ("mlp", "evit", "pixel_shuffle")])
def test_every_connector_that_fits_stands_behind_a_projector(stock, name, connector, pictures):
    model, processor = stock
    inputs = prompts(name, use_connector(model, processor, connector, num_tokens=4), pictures)
    inputs["labels"] = inputs["input_ids"]
    loss = model(**inputs).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.model.image_connector.parameters())


@every_family
def test_an_image_alone_and_in_a_batch_become_the_same_tokens(stock, name, pictures):
    model, processor = stock
    ours = use_connector(model, processor, "tree", num_tokens=T)
    together, alone = (prompts(name, ours, pictures, both) for both in (True, False))
    rows = [logits(model, inputs)[0, -4:] for inputs in (together, alone)]
    # float32 sums in another order
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-5)


@every_family
def test_with_all_tokens_kept_the_logits_are_the_stock_models(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, processor, pictures)
    expected = logits(model, inputs)
    ours = use_connector(model, processor, "mlp", num_tokens=None)
    again = prompts(name, ours, pictures)
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(logits(model, again), expected)


@every_family
def test_saved_and_loaded_it_answers_the_same(stock, name, pictures, tmp_path):
    model, processor = stock
    ours = use_connector(model, processor, "sec", num_tokens=T, init="random")
    model.save_pretrained(tmp_path), ours.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = prompts(name, AutoProcessor.from_pretrained(tmp_path), pictures)
    assert torch.equal(inputs["input_ids"], prompts(name, ours, pictures)["input_ids"])
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    answers = [one.generate(**inputs, max_new_tokens=4, do_sample=False) for one in (loaded, model)]
    assert torch.equal(*answers)
    assert answers[0].shape[1] > inputs["input_ids"].shape[1]


@every_family
def test_a_stock_checkpoint_lacks_the_connector_and_nothing_else(stock, name, tmp_path):
    model, _ = stock
    model.save_pretrained(tmp_path)
    kind = next(one.ours.generation for one in FAMILIES if one.stock.generation is type(model))
    connector = {"name": "sec", "num_tokens": T}
    ours, report = kind.from_pretrained(
        tmp_path, connector={**connector, "extra_token": None}, output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert all(key.startswith("model.image_connector.pool.") for key in report["missing_keys"])
    use_connector(model, None, **connector)
    for key, weight in model.state_dict().items():
        assert torch.equal(ours.state_dict()[key], weight), key


@every_family
def test_generation_with_a_cache_gives_the_tokens_of_one_without(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, use_connector(model, processor, "sec", num_tokens=T), pictures, both=False)
    cached, whole = (
        model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)


@every_family
def test_a_training_step_changes_the_connector(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, use_connector(model, processor, "sec", num_tokens=T), pictures)
    inputs["labels"] = inputs["input_ids"]
    learned = model.train().model.image_connector.pool["attend"].v.weight
    before = learned.detach().clone()
    optimizer = torch.optim.SGD([learned], lr=1.0)
    model(**inputs).loss.backward()
    optimizer.step()
    assert not torch.equal(learned, before)


@every_family
def test_taken_out_again_it_is_the_stock_model(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, processor, pictures)
    kind, expected, keys = type(model), logits(model, inputs), set(model.state_dict())
    ours = use_connector(model, use_connector(model, processor, "tree", num_tokens=4), "sec", num_tokens=T)
    assert set(model.state_dict()) > keys
    connected = prompts(name, ours, pictures)
    assert torch.equal(logits(copy.deepcopy(model), connected), logits(model, connected))
    back = restore_connector(model, ours)
    assert type(model) is kind
    assert set(model.state_dict()) == keys
    assert type(back) is type(processor)
    again = prompts(name, back, pictures)
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(logits(model, again), expected)


@every_family
def test_the_connector_alone_is_saved_with_the_projector(stock, name, pictures, tmp_path):
    model, processor = stock
    twin = copy.deepcopy(model)
    ours = use_connector(model, processor, "sec", num_tokens=T, init="random")
    save_connector(model, tmp_path)
    inputs = prompts(name, load_connector(twin, processor, tmp_path), pictures)
    assert torch.equal(logits(twin, inputs), logits(model, prompts(name, ours, pictures)))


@every_family
def test_the_stock_processor_is_refused_with_the_one_to_take(stock, name, pictures):
    model, processor = stock
    use_connector(model, processor, "sec", num_tokens=T)
    with pytest.raises(ValueError, match="take the processor that use_connector returned"):
        logits(model, prompts(name, processor, pictures))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@every_family
def test_lora_keeps_the_connector_with_its_adapter(stock, name, pictures, tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = stock
    fresh = copy.deepcopy(model)
    ours = use_connector(model, processor, "sec", num_tokens=T, init="random")
    inputs = prompts(name, ours, pictures)
    expected = logits(model, inputs)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["image_connector"])
    wrapped = peft.get_peft_model(model, lora)
    wrapped.save_pretrained(tmp_path)
    use_connector(fresh, processor, "sec", num_tokens=T)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(logits(again, inputs), expected)


def positions_of(model, run):
    """What positions (axes, B, S) the language model gets in the first call of `run`."""
    seen: list = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    return seen[0][-3:]


qwen = pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])


@qwen
def test_merged_tokens_of_qwen_stand_at_their_mean_places_and_text_where_it_stood(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, processor, pictures)
    before = positions_of(model, lambda: logits(model, inputs))
    was_text = (inputs["input_ids"] != model.config.image_token_id) & inputs["attention_mask"].bool()
    inputs = prompts(name, use_connector(model, processor, "sec", num_tokens=T), pictures)
    after = positions_of(model, lambda: logits(model, inputs))
    is_image = inputs["input_ids"] == model.config.image_token_id
    is_text = ~is_image & inputs["attention_mask"].bool()
    for row in range(2):
        assert torch.equal(after[:, row, is_text[row]], before[:, row, was_text[row]])
    places = model.merged(inputs["pixel_values"], inputs["image_grid_thw"])
    expected = []
    for row, image in ((0, 0), (0, 1), (1, 2)):
        height, width = (inputs["image_grid_thw"][image, 1:] // 2).tolist()
        start = after[0, row, is_image[row]][0 if image != 1 else T]
        x, y = (places[image].coordinates[0] * torch.tensor([width, height]) - 0.5).round().T
        expected.append(start + torch.stack([torch.zeros(T), y, x]))
    assert torch.equal(after[:, is_image].float(), torch.cat(expected, dim=1))
    assert len(set(after[1, 0, is_image[0]].tolist())) > 1  # not all in one place


@qwen
def test_each_beam_has_the_places_of_its_own_image(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, use_connector(model, processor, "sec", num_tokens=T), pictures)
    plain = positions_of(model, lambda: logits(model, inputs))
    beams = positions_of(model, lambda: model.generate(**inputs, num_beams=2, max_new_tokens=2))
    real = inputs["attention_mask"].bool()
    for row in range(4):
        assert torch.equal(beams[:, row, real[row // 2]], plain[:, row // 2, real[row // 2]])


@qwen
def test_an_image_of_qwen_with_fewer_tokens_keeps_its_own(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, processor, pictures)  # 24 and 25 tokens
    expected = logits(model, inputs)
    again = prompts(name, use_connector(model, processor, "sec", num_tokens=25), pictures)
    assert torch.equal(logits(model, again), expected)
    third = prompts(name, use_connector(model, processor, "sec", num_tokens=24), pictures)
    assert image_tokens(model, third).tolist() == [48, 24]
    assert not torch.equal(logits(model, third)[0, -1], expected[0, -1])
    # float32 sums over other padding
    torch.testing.assert_close(logits(model, third)[1, -1], expected[1, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3_vl"])
def test_deepstack_is_merged_by_the_weights_of_the_tokens(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, processor, pictures)
    images = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}

    def deep():
        layers = model.get_image_features(**images).deepstack_features
        return [x if isinstance(x, torch.Tensor) else torch.cat(tuple(x)) for x in layers]

    with torch.no_grad():
        before = deep()
        use_connector(model, processor, "sec", num_tokens=T)
        weights = torch.block_diag(*(one.weights[0] for one in model.merged(**images)))
        for layer, own in zip(deep(), before, strict=True):
            torch.testing.assert_close(layer, weights @ own)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "paligemma"])
def test_the_count_is_known_from_the_size_of_an_image(stock, name, pictures):
    model, processor = stock
    ours = use_connector(model, processor, "sec", num_tokens=T)
    mark = families.PLACEHOLDER.get(name, "<image>")
    for picture in pictures:
        count = ours._get_num_multimodal_tokens(image_sizes=[picture.size[::-1]]).num_image_tokens
        inputs = ours(images=[picture], text=[f"{mark} describe"], return_tensors="pt")
        assert image_tokens(model, inputs).tolist() == count


@pytest.mark.parametrize("name", ["qwen2_5_vl"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mlp", "num_tokens": T}, "choose num_tokens=None"),
        ({"extra_token": "mean", "num_tokens": T}, "choose extra_token=None"),
    ],
)
def test_what_needs_images_of_one_size_is_refused(stock, name, options, message):
    model, processor = stock
    with pytest.raises(ValueError, match=message):
        use_connector(model, processor, **options)


@pytest.mark.parametrize("name", ["internvl", "qwen3_vl"])
def test_a_model_in_4_bits_takes_a_connector_and_comes_back(stock, name, pictures, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    model, processor = stock
    model.save_pretrained(tmp_path / "stock")
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    # in training mode: in the other bitsandbytes packs weights for CPUs at their first use, and saves them damaged
    model = type(model).from_pretrained(tmp_path / "stock", quantization_config=four).train()
    inputs = prompts(name, use_connector(model, processor, "resampler", num_tokens=T), pictures)
    model.save_pretrained(tmp_path / "ours")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").train()
    assert "4bit" in type(again.model.language_model.layers[0].self_attn.q_proj).__name__
    assert all(p.is_floating_point() for p in again.model.image_connector.parameters())
    # float32 sums of dequantised weights
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs), rtol=1e-4, atol=1e-4)


@qwen
def test_videos_are_refused_while_a_connector_is_in(stock, name):
    model, processor = stock
    use_connector(model, processor, num_tokens=T)
    with pytest.raises(NotImplementedError, match="restore_connector"):
        model.get_video_features(torch.zeros(4, 96), torch.tensor([[1, 2, 2]]))


@pytest.mark.parametrize("name", ["internvl"])
def test_what_each_token_is_made_of_is_told_tile_by_tile(stock, name, pictures):
    model, processor = stock
    inputs = prompts(name, use_connector(model, processor, "sec", num_tokens=T), pictures)
    merged = model.merged(pixel_values=inputs["pixel_values"])
    assert merged.weights.shape == (len(inputs["pixel_values"]), T, 16)
    torch.testing.assert_close(merged.weights.sum(dim=-1), torch.ones(len(merged.weights), T))


@pytest.mark.parametrize("name", ["internvl"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 17}, "16 tokens cannot give 17"),
        ({"extra_token": "cls", "num_tokens": T}, "there are patches only"),
        ({"name": "evit", "num_tokens": T}, "there are patches only"),
        ({"name": "pixel_shuffle", "num_tokens": 4}, "another connector"),
        ({"name": "mlp", "num_tokens": T}, "choose num_tokens=16"),
        ({"where": "after", "num_tokens": T}, "is behind its projector"),
    ],
)
def test_what_a_connector_behind_a_projector_cannot_do_is_refused(stock, name, options, message):
    model, processor = stock
    with pytest.raises(ValueError, match=message):
        use_connector(model, processor, **options)
    assert not hasattr(model.model, "image_connector")


@pytest.mark.parametrize("name", ["internvl"])
def test_the_processor_of_another_family_is_refused(stock, name):
    model, _ = stock
    with pytest.raises(ValueError, match="no InternVLProcessor"):
        use_connector(model, families.stock("paligemma")[1], num_tokens=T)
    assert not hasattr(model.model, "image_connector")
