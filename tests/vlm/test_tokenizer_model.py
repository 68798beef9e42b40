"""A language model whose folder has its tokenizer as tokenizer.model alone, as Vicuna's has."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from secvit.vlm import ask, load_trained, train
from secvit.vlm.config import Model
from secvit.vlm.initial import initial_llava, read_tokenizer
from tests.vlm.make import folder
from tests.vlm.test_train import small

TEXT = "How many people are there? A red car and two cats under 3 green trees, on a mat: é"


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders of a Llama with a tokenizer.model and of a CLIP tower -> (language, vision)."""
    sentencepiece = pytest.importorskip("sentencepiece", reason='pip install "secvit[vlm]"')
    language, vision = (tmp_path_factory.mktemp(name) for name in ("language", "vision"))
    with open(language / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([TEXT[i:] for i in range(0, 60, 5)]), model_writer=file, vocab_size=330,
            model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip
    (language / "tokenizer_config.json").write_text(
        json.dumps({
            "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False,
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 4096,
            "padding_side": "right",
        })
    )  # fmt: skip
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=330, **sizes)).save_pretrained(language)
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=4, **sizes)).save_pretrained(vision)
    shape = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**shape).save_pretrained(vision)
    return language, vision


@pytest.fixture(scope="module")
def chosen(towers):
    language, vision = map(str, towers)
    return {"base": "parts", "language": language, "vision": vision, "connector_args": {}}


def test_the_pieces_are_those_of_sentencepiece_and_the_image_is_one_more(towers, chosen):
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(towers[0] / "tokenizer.model"))
    llava, processor = initial_llava(Model(**chosen, num_tokens=16))
    tokenizer = processor.tokenizer
    ids = tokenizer(TEXT).input_ids
    assert ids == [theirs.bos_id(), *theirs.encode(TEXT)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    assert tokenizer("<image>", add_special_tokens=False).input_ids == [llava.config.image_token_id]
    assert llava.get_input_embeddings().num_embeddings >= len(tokenizer) > theirs.vocab_size()


def test_both_stages_run_to_an_answer(tmp_path, chosen):
    data = folder(tmp_path / "data", texts=0, follow_ups=False)

    def recipe(name, **more):
        made = small(name, steps=1)
        return replace(made, model=replace(made.model, **chosen, **more))

    train(recipe("llava_pretrain_7b"), data, tmp_path / "stage1")
    train(recipe("llava_finetune_7b", init=str(tmp_path / "stage1")), data, tmp_path / "stage2")
    for run in ("stage1", "stage2"):
        llava, processor = load_trained(tmp_path / run, "cpu")
        said = ask(llava, processor, [Image.open(data / "images/0.png")], "what is it?", max_new_tokens=3)
        assert isinstance(said, str)


@pytest.mark.parametrize("missing", ["sentencepiece", "google.protobuf"])
def test_without_its_packages_the_extra_is_named(monkeypatch, missing):
    def refuse(name):
        raise ValueError("`tiktoken` is required to read a `tiktoken` file. Install it with `pip install tiktoken`.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setitem(sys.modules, missing, None)
    needed = r'the tokenizer\.model of lmsys/vicuna needs sentencepiece and protobuf; run: pip install "secvit\[vlm\]"'
    with pytest.raises(ImportError, match=needed):
        read_tokenizer("lmsys/vicuna")
