"""LLaVA with any connector in lmms-eval: `lmms_eval --model secvit --model_args pretrained=RUN --tasks pope`.

Found by lmms-eval through the entry point `lmms_eval.models`; its own models do not know our classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from secvit.models.saved import device_of
from secvit.vlm.asking import load_trained
from secvit.vlm.chat import prepare
from secvit.vlm.evaluate import reply


def manifest() -> ModelManifest:
    """What lmms-eval asks the entry point for."""
    return ModelManifest("secvit", chat_class_path="secvit.vlm.lmms.SecLlava")


class SecLlava(lmms):
    """A run of `secvit train vlm...` or any LLaVA of transformers.

    pretrained: as for `load_trained`.  template: "v1" for LLaVA-1.5's own prompt and square images; else the
    processor's.  The other arguments are lmms-eval's.
    """

    is_simple = False

    def __init__(
        self, pretrained: str, template: str | None = None, batch_size: int | str = 1, device: str | None = None
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size = int(batch_size)
        place = self.accelerator.device if self.world_size > 1 or device is None else device_of(device)
        dtype = torch.float32 if place.type == "cpu" else "auto"
        self.model, self.processor = load_trained(pretrained, place, dtype)
        self.processor = prepare(self.processor, template, pad=template is not None)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """One answer for each request, in their order.  Those with the same arguments of generation go together."""
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(str(request.args[2]), []).append(i)
        results: dict[int, GenerationResult] = {}
        bar = tqdm(total=len(requests), desc="answering", disable=self.rank != 0)
        for group in alike.values():
            for batch in (group[at : at + self.batch_size] for at in range(0, len(group), self.batch_size)):
                options = requests[batch[0]].args[2]
                conversations = [self.conversation(requests[i]) for i in batch]
                for i, text in zip(batch, reply(self.model, self.processor, conversations, **generation(options))):
                    results[i] = self.result(cut(text, options.get("until")))
                    self.cache_hook.add_partial("generate_until", (requests[i].args[0], options), results[i].text)
                bar.update(len(batch))
        bar.close()
        return [results[i] for i in range(len(requests))]

    def conversation(self, request: Instance) -> list[dict[str, Any]]:
        """A request's messages, with images inside."""
        _, to_messages, _, doc, task, split = request.args
        return ChatMessages(messages=to_messages(self.task_dict[task][split][doc])).to_hf_messages()

    def result(self, text: str) -> GenerationResult:
        tokens = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return GenerationResult(text, TokenCounts(output_tokens=len(tokens)))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("secvit's lmms-eval model generates answers; choose tasks of type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("secvit's lmms-eval model answers in one round; choose tasks of type generate_until")


def generation(wanted: dict[str, Any]) -> dict[str, Any]:
    """A task's arguments of generation as transformers takes them; greedy at temperature 0, as LLaVA is evaluated."""
    kept = {k: wanted[k] for k in ("max_new_tokens", "num_beams", "temperature", "top_p") if wanted.get(k) is not None}
    sampled = bool(wanted.get("do_sample", True)) and kept.get("temperature", 0) > 0
    return {"max_new_tokens": 1024, **kept, "do_sample": sampled}


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """What stands before the first of the texts that a task stops at."""
    stops = [until] if isinstance(until, str) else [*(until or ())]
    return min((text.split(stop)[0] for stop in stops if stop), key=len, default=text).strip()
