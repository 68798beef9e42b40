"""Vision-language training as the loop sees it: the loss of answers, and weights without the frozen ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secvit.vlm.adapt import unwrapped
from secvit.vlm.data import IGNORED


class VlmTask(nn.Module):
    """Cross-entropy of the answers' tokens, the mean over those of a part, on batches of `Conversations`."""

    def __init__(self, llava: nn.Module) -> None:
        super().__init__()
        self.model = Trained(llava)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        logits, target = answers(self.model.llava, batch)
        return {
            "loss": F.cross_entropy(logits.float(), target),
            "token_accuracy": (logits.argmax(-1) == target).float().mean(),
        }


class Trained(nn.Module):
    """A LLaVA (`llava`, maybe inside peft's wrapper) whose state dict holds the weights that learn, and no others.

    So a checkpoint of stage 1 is as small as a connector.  What learns is decided when it is made.
    """

    def __init__(self, llava: nn.Module) -> None:
        super().__init__()
        self.llava = llava
        self.frozen = frozenset(name for name, p in self.named_parameters() if not p.requires_grad)
        self.register_state_dict_post_hook(without_frozen)
        self.register_load_state_dict_post_hook(forgive_frozen)


def without_frozen(module: Any, state: dict[str, Any], prefix: str, about: Any) -> None:
    for name in module.frozen:
        state.pop(prefix + name, None)


def forgive_frozen(module: Any, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in module.frozen]


def answers(llava: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What the model says where an answer's tokens are due -> logits (n, V), tokens (n,).

    Each is said after the true tokens before it.  The language model's head works on these alone, as most of a sample
    is image and question.
    """
    net = unwrapped(llava)
    inner = net.model
    inputs = batch.get("connector_inputs")
    blind = inputs is None and "pixel_values" not in batch
    if blind:
        size = inner.config.vision_config.image_size
        # without images, a blank one keeps tower and connector at work: processes that share weights or gradients
        # wait for each other's
        _, inputs = inner.connector_inputs(batch["input_ids"].new_zeros(1, 3, size, size).float())
    if inputs is not None:
        features = inner.connect(inputs).flatten(0, 1)
    else:
        output = inner.get_image_features(batch["pixel_values"], image_sizes=batch.get("image_sizes"), return_dict=True)
        features = torch.cat(output.pooler_output)
    words = inner.get_input_embeddings()(batch["input_ids"])
    if not blind:
        features = features.to(words.dtype)
        places = inner.get_placeholder_mask(batch["input_ids"], inputs_embeds=words, image_features=features)
        words = words.masked_scatter(places, features)
    hidden = inner(inputs_embeds=words, attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
    if blind:
        hidden = hidden + 0 * features.sum()
    target = batch["labels"][:, 1:]
    due = target != IGNORED
    return net.lm_head(hidden[:, :-1][due]), target[due]
