"""The trainers that people have, transformers' and TRL's, take our data and our models."""

import json

import pytest
import torch
from transformers import Trainer, TrainingArguments

from secvit.vlm import use_connector
from secvit.vlm.chat import Chat, messages, prepare
from secvit.vlm.config import Samples
from secvit.vlm.data import Conversations, load, read_samples, texts
from secvit.vlm.small import small_llava, small_tokenizer
from tests.vlm.make import folder

pytestmark = pytest.mark.slow


@pytest.fixture
def ready(tmp_path):
    file = folder(tmp_path / "data") / "train.json"
    tokenizer = small_tokenizer(texts(read_samples(file)[0]), vocab_size=600)
    llava, processor = small_llava(tokenizer, None, image_size=32, dim=32)
    processor = prepare(use_connector(llava, processor, "sec", num_tokens=16), "v1", pad=True)
    chat = Chat(processor)
    samples, lengths = load(file, Samples(), chat)
    return llava.train(), processor, Conversations(samples, chat, lengths, group=4)


class Grouped(Trainer):
    """transformers' Trainer with our batches of similar length."""

    def _get_train_sampler(self, train_dataset=None):
        return self.train_dataset.order(torch.Generator().manual_seed(self.args.seed)).tolist()


def test_transformers_trainer_takes_our_dataset(ready, tmp_path):
    llava, _, dataset = ready
    llava.model.vision_tower.requires_grad_(False)
    arguments = TrainingArguments(
        str(tmp_path / "hf"), max_steps=12, per_device_train_batch_size=4, learning_rate=3e-3, use_cpu=True,
        logging_steps=4, save_strategy="no", report_to=[], remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = Grouped(llava, arguments, train_dataset=dataset, data_collator=dataset.collate)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.filterwarnings("ignore")  # TRL, datasets and transformers warn of each other's old names
def test_trl_takes_a_model_with_a_connector(ready, tmp_path):
    trl = pytest.importorskip("trl", reason="pip install trl")
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    llava, processor, dataset = ready
    pictured = [one for one in dataset.samples if one.images][:4]
    file = tmp_path / "rows.jsonl"  # images by their paths, which datasets opens
    file.write_text("\n".join(json.dumps({"messages": messages(one), "images": one.images}) for one in pictured))
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    arguments = trl.SFTConfig(
        str(tmp_path / "trl"), max_steps=2, per_device_train_batch_size=2, use_cpu=True, bf16=False,
        assistant_only_loss=True, max_length=None, save_strategy="no", report_to=[], logging_steps=1,
    )  # fmt: skip
    seen = []
    llava.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)
    trl.SFTTrainer(llava, arguments, train_dataset=rows, processing_class=processor).train()
    labels = seen[0]["labels"][0]
    learned = processor.tokenizer.decode(labels[labels >= 0])
    assert any(learned.startswith(f" {one.turns[0][1]}</s>") for one in pictured)
