"""Runs of `secvit train vlm...`, any LLaVA that transformers loads, and files of answers."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from secvit.files import check_target, write_atomically
from secvit.images.photos import listed, opened
from secvit.models.saved import device_of
from secvit.runs.trained import Made, Photo, Photos, Tell, Trained, open_photos
from secvit.vlm.asking import ask, load_trained
from secvit.vlm.chat import Chat
from secvit.vlm.chat import prepare as for_training
from secvit.vlm.config import Samples
from secvit.vlm.data import Conversations, files, load
from secvit.vlm.evaluate import evaluate_checkpoint
from secvit.vlm.training import evaluate


class Llava(Trained):
    """A vision-language model.

    predict gives, for each photo, the answer to a question.
    """

    task = "vlm"

    def __init__(self, path: Path | str, *, model: str | None = None, device: str | None = None) -> None:
        """Open a run; see `secvit.runs.open`.

        model: name of the network, for a weight file without a config.yaml beside it.
        device: cpu, cuda, ...; the GPU if there is one.
        """
        super().__init__(path)
        if model is not None:
            raise ValueError(f"--model {model}: {path} says itself what it is; leave out the name")
        self.device = device
        place = device_of(device)
        # many checkpoints are saved at half precision, which is slow on a CPU
        llava, self.processor = load_trained(path, place, torch.float32 if place.type == "cpu" else "auto")
        self.model: nn.Module = llava

    def predict(
        self, images: Photo | Sequence[Photo], question: str = "What is in the picture?", max_new_tokens: int = 256
    ) -> list[str]:
        """The answer to a question about each photo by itself; for one about several, `secvit.vlm.ask`."""
        return [ask(self.model, self.processor, one, question, max_new_tokens) for one in open_photos(images)]  # type: ignore[arg-type]

    def export_view(self) -> dict[str, Any]:
        raise ValueError(
            f"{self.path}: transformers and vLLM serve a language model from the run's folder itself (docs/vlm.md)"
        )

    def clustered(self) -> nn.Module:
        raise ValueError(
            f"{self.path} is a language model, whose tower has no clusters; what a connector puts together is drawn by "
            "secvit.vis.merge_photo"
        )

    def evaluate(
        self,
        data: str | None = None,
        split: str = "val",
        *,
        benchmark: str | None = None,
        answers: str | None = None,
        template: Literal["v1"] | None = None,
        batch_size: int | None = None,
    ) -> dict[str, Any]:
        """Scores on a benchmark of tables 7 to 9; without one, loss and word-for-word answers on conversations.

        data: the benchmark's folder (docs/vlm_evaluation.md), or a JSON of conversations or its folder; else what the
            run learned from.
        split: of the benchmark, or train or val of the conversations.
        benchmark: textvqa, gqa, vqav2, vizwiz, scienceqa, pope, mme, mmbench or seed.
        answers: the JSONL file for the answers, if not in the run's folder.
        template: v1 for LLaVA-1.5's own prompt and square images.
        batch_size: questions at a time (1), or conversations (8).
        """
        if benchmark and data is None:
            raise ValueError("which questions?  Give --data with the benchmark's folder (docs/vlm_evaluation.md)")
        other_data = data is not None
        data = self.data_of(data)
        if benchmark:
            options = {"answers": answers, "template": template, "device": self.device}
            return evaluate_checkpoint(self.path, benchmark, data, split, batch_size=batch_size or 1, **options)
        if answers or template:
            raise ValueError("--answers and --template belong to --benchmark; give all of them")
        chosen = self._samples(other_data)
        train, val = files(data, chosen)
        if split not in ("train", "val"):
            raise ValueError(f"--split {split}: conversations have train and val; or give a JSON file with --data")
        file = train if split == "train" or (other_data and not Path(data).is_dir()) else val
        if file is None:
            raise ValueError(f"{data} has no {split}.json; give --split train, or the JSON file itself")
        chat = Chat(for_training(self.processor, chosen.template, chosen.pad))
        samples, lengths = load(file, chosen, chat)
        view = Conversations(samples, chat, lengths)
        return {"data": str(file), "samples": len(view), **evaluate(self.model, view, batch_size or 8)}

    def _samples(self, other_data: bool) -> Samples:
        """How the run read its conversations; other_data: those of other data, whose val and images are their own."""
        chosen = Samples(**self.config.get("samples", {}))
        lost = chosen.images if chosen.images and not Path(chosen.images).is_dir() else None
        if lost and not other_data:
            raise ValueError(
                f"{self.path} learned from images in {lost}, which is not there now; give --data FILE.json, with the "
                "images beside it"
            )
        return replace(chosen, val=None, images=None if lost else chosen.images) if other_data else chosen

    def photos(
        self,
        photos: Photos,
        *,
        question: str = "What is in the picture?",
        max_new_tokens: int = 256,
        json: str | None = None,
        tell: Tell = len,
    ) -> Made:
        """The answer to one question about each photo.

        photos: files of any format and size, or folders of them.
        question: what to ask about each.
        max_new_tokens: most tokens of an answer.
        json: also write the answers to this file.
        """
        if json:
            check_target(json)
        made = Made()
        try:
            for batch in opened(listed(photos), made, 1, "asking"):
                for path, image in batch.items():
                    answer = self.predict(image, question, max_new_tokens)[0]
                    made.rows.append({"photo": str(path), "question": question, "answer": answer})
                    tell(f"{path}: {answer}")
        finally:
            if json and made.rows:
                write_atomically(Path(json), json_format.dumps(made.rows, indent=2, ensure_ascii=False).encode())
        return made


class Answers(Trained):
    """A file of answers to a benchmark's questions, of whatever model."""

    task = "answers"

    def __init__(self, path: Path | str, *, model: str | None = None, device: str | None = None) -> None:
        super().__init__(path)
        if model or device:
            raise ValueError(f"{path} holds answers; --model and --device belong to the run that gave them")

    def evaluate(self, data: str, split: str = "val", *, benchmark: str) -> dict[str, Any]:
        """The benchmark's scores of the answers.

        data: the benchmark's folder (docs/vlm_evaluation.md).
        split: of the benchmark.
        benchmark: textvqa, gqa, vqav2, vizwiz, scienceqa, pope, mme, mmbench or seed.
        """
        return evaluate_checkpoint(None, benchmark, data, split, answers=self.path)
