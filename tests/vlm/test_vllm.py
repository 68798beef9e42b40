"""vLLM in earnest, on a CPU: what it serves gives the tokens that transformers gives.  `make test-vllm` installs it."""

import importlib.util
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, SiglipVisionConfig

from secvit.vlm import SecLlavaConfig, SecLlavaForConditionalGeneration, use_connector
from secvit.vlm.chat import prepare
from secvit.vlm.small import small_llava

MISSING = importlib.util.find_spec("vllm") is None
if MISSING and os.environ.get("NEEDS_VLLM"):
    raise RuntimeError("no vllm")
pytestmark = [
    pytest.mark.skipif(MISSING, reason="no vllm; make test-vllm installs it in an environment of its own"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]

QUESTION = "USER: <image>\nwhat is on the left? ASSISTANT:"
BOTH = "USER: <image>\n<image>\nhow many dogs are there? ASSISTANT:"
LENGTH = 12
SHAPE = {"image_size": 16, "patch_size": 4, "head_dim": 32}  # 16 patches; vLLM's attention on CPUs has no heads of 16


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """vLLM's engine in this process: a model starts in less than a second."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def save(folder, model, processor):
    """A folder to serve.  Larger weights than transformers draws: the tokens then depend on the images."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def start(folder, **options):
    from vllm import LLM

    return LLM(
        folder,
        dtype="float32",
        max_model_len=256,
        limit_mm_per_prompt={"image": 2},
        gpu_memory_utilization=0.05,  # of the machine's memory
        kv_cache_memory_bytes=2**26,
        enforce_eager=True,
        **options,
    )


def by_vllm(llm, asked):
    """The prompts' and the answers' tokens of [(prompt, images)]."""
    from vllm import SamplingParams

    prompts = [{"prompt": text, "multi_modal_data": {"image": pictures}} for text, pictures in asked]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=LENGTH), use_tqdm=False)
    return [(list(out.prompt_token_ids), list(out.outputs[0].token_ids)) for out in outputs]


def by_transformers(folder, asked):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for text, pictures in asked:
        inputs = processor(images=pictures, text=text, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0].tolist()
        answers.append((out[: inputs["input_ids"].shape[1]], out[inputs["input_ids"].shape[1] :]))
    return answers


def check_same_answers(folder, pictures, tokens_of_a_picture, **options):
    """One image, the other, both in one prompt: three answers, equal token by token, and none like another."""
    asked = [(QUESTION, pictures[:1]), (QUESTION, pictures[1:]), (BOTH, pictures)]
    expected = by_transformers(folder, asked)
    image = AutoProcessor.from_pretrained(folder).image_token_id
    assert [prompt.count(image) for prompt, _ in expected] == [n * tokens_of_a_picture for n in (1, 1, 2)]
    assert len({tuple(answer) for _, answer in expected}) == 3, "the images do not matter: nothing is tested"
    assert by_vllm(start(folder, **options), asked) == expected


@pytest.mark.parametrize(
    ("name", "extra_token"),
    [
        ("sec", None),
        ("sec", "mean"),
        ("sec", "cls"),
        ("mlp", None),
        ("resampler", "mean"),
        ("pool", "cls"),
        ("c_abstractor", None),
        ("pixel_shuffle", "mean"),
        ("tome", "cls"),
        ("random", None),
        ("window", "cls"),
        ("tree", "mean"),
    ],
)
def test_vllm_answers_as_transformers_does(name, extra_token, tokenizer, pictures, tmp_path):
    count = 16 if name == "mlp" else 4
    options = {"init": "random"} if name == "sec" else {}
    llava = small_llava(tokenizer, name, count, extra_token=extra_token, **SHAPE, **options)
    check_same_answers(save(tmp_path, *llava), pictures, count + (extra_token is not None))


def test_a_released_llava_with_a_connector_put_in(tokenizer, pictures, tmp_path):
    stock = tmp_path / "stock"
    save(stock, *small_llava(tokenizer, None, **SHAPE))
    with_the_names_of_released_files(stock)
    model = AutoModelForImageTextToText.from_pretrained(stock, dtype=torch.float32)
    processor = use_connector(model, AutoProcessor.from_pretrained(stock), num_tokens=4)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "ours")
    assert any(name.startswith("vision_tower.vision_model.") for name in load_file(tmp_path / "ours/model.safetensors"))
    check_same_answers(str(tmp_path / "ours"), pictures, 4)


def with_the_names_of_released_files(folder):
    """`vision_tower.vision_model.*`: transformers 5 leaves the second part out when it saves a model made anew."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): w for name, w in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, file, metadata={"format": "pt"})


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_the_connector_takes_all_patches_and_no_cls_whatever_is_selected(
    tower, strategy, tokenizer, pictures, tmp_path
):
    model, processor = small_llava(tokenizer, "sec", 4, extra_token="mean", init="random", **SHAPE)
    config = model.config
    config.vision_feature_select_strategy = strategy
    if tower == "siglip":
        shared = {k: getattr(config.vision_config, k) for k in ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")}  # fmt: skip
        config.vision_config = SiglipVisionConfig(**shared)
    model = SecLlavaForConditionalGeneration(config).eval()
    check_same_answers(save(tmp_path, model, processor), pictures, 5)


def test_an_engine_in_a_process_of_its_own(tokenizer, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    model, processor = small_llava(tokenizer, "sec", 4, init="random", **SHAPE)
    check_same_answers(save(tmp_path, model, processor), pictures, 5)


def test_a_chat_by_the_template_that_the_recipes_train_with(tokenizer, pictures, tmp_path):
    from vllm import SamplingParams

    model, processor = small_llava(tokenizer, "sec", 4, init="random", **SHAPE)
    folder = save(tmp_path, model, prepare(processor, "v1", pad=False))
    question = {"type": "text", "text": "what is on the left?"}
    message = {"role": "user", "content": [{"type": "image_pil", "image_pil": pictures[0]}, question]}
    (out,) = start(folder).chat([message], SamplingParams(temperature=0, max_tokens=LENGTH), use_tqdm=False)
    message = {"role": "user", "content": [{"type": "image"}, question]}
    inputs = AutoProcessor.from_pretrained(folder).apply_chat_template(
        [message], add_generation_prompt=True, tokenize=False
    )
    ((prompt, answer),) = by_transformers(folder, [(inputs.removeprefix("<s>"), pictures[:1])])
    assert (list(out.prompt_token_ids), list(out.outputs[0].token_ids)) == (prompt, answer)


def test_a_prompt_with_another_number_of_placeholders_than_images_is_refused(tokenizer, pictures, tmp_path):
    llm = start(save(tmp_path, *small_llava(tokenizer, "sec", 4, **SHAPE)))
    with pytest.raises(
        ValueError, match=r"the prompt has 2 <image> for 1 image\(s\); write it once where each image goes"
    ):
        by_vllm(llm, [(BOTH, pictures[:1])])
    with pytest.raises(ValueError, match=r"the prompt has 1 <image> for 2 image\(s\)"):
        by_vllm(llm, [(QUESTION, pictures)])


@pytest.mark.parametrize("processes", ["0", "1"])
def test_what_vllm_cannot_serve_is_refused_where_the_caller_sees_it(processes, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", processes)
    folder = save(tmp_path, *small_llava(tokenizer, "evit", 4, **SHAPE))
    with pytest.raises(
        NotImplementedError, match=r"no attention of \[cls\], which evit needs; serve it with transformers"
    ):
        start(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vision_feature_layer": [-3, -2]}, NotImplementedError, r"the last of vision_feature_layer=\[-3, -2\] only"),
        (
            {"vision_config": SiglipVisionConfig(image_size=16, patch_size=4)},
            ValueError,
            "SiglipVisionConfig: a tower without \\[cls\\]",
        ),
        (
            {"image_seq_length": 576},
            ValueError,
            "image_seq_length is 576, but the connector sec makes 5 tokens of a picture",
        ),
        (
            {"connector": {"name": "sec", "num_tokens": 17}},
            ValueError,
            "16 tokens cannot give 17; choose num_tokens <= 16",
        ),
    ],
)
def test_a_config_that_vllm_cannot_serve_is_refused(change, error, message):
    from secvit.vlm.serving.vllm import check

    config = SecLlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=4),
        connector={"name": "sec", "num_tokens": 4, "extra_token": "cls"},
        image_seq_length=5,
    )
    check(config)
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(error, match=message):
        check(config)
