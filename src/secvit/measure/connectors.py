"""`secvit bench connector`: what fewer image tokens save in a LLaVA, split into tower, connector, prefill and decode.

Work and memory are worked out from a configuration's numbers, so 7B and 13B need no weights.  Times are ratios
within a round (see `rounds`) of a model of random weights, scaled down where there is no GPU for the whole one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secvit import connectors
from secvit.measure.connector_results import ConnectorReport, ModelWork, Times
from secvit.measure.connector_work import Shape, connect, connector_of, shape_of, work
from secvit.measure.results import head, save_result, using_threads
from secvit.measure.rounds import Speeds, clock_for, clock_name, interleave
from secvit.measure.speed import DTYPES, check_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Timed:
    """A LLaVA of random weights in its parts, and the calls that are timed."""

    def __init__(self, shape: Shape, text: int, new: int, dtype: str, device: str) -> None:
        from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig

        torch.manual_seed(0)
        self.shape, self.text, self.new, self.dtype, self.device = shape, text, new, DTYPES[dtype], device
        vision = CLIPVisionConfig(
            hidden_size=shape.vision_dim, intermediate_size=shape.vision_mlp, num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.vision_heads, image_size=shape.image_size, patch_size=shape.patch_size,
        )  # fmt: skip
        language = LlamaConfig(
            hidden_size=shape.dim, intermediate_size=shape.mlp, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
            vocab_size=shape.vocab, max_position_embeddings=4096,
        )  # fmt: skip
        with torch.device(device):
            self.tower: PreTrainedModel = AutoModel.from_config(vision, dtype=self.dtype).eval()
            self.language: PreTrainedModel = AutoModelForCausalLM.from_config(language, dtype=self.dtype).eval()
            self.image = torch.randn(1, 3, shape.image_size, shape.image_size, dtype=self.dtype)
            self.words = torch.randint(shape.vocab, (1, text))
        # transformers 5.24 says cache to what was past_key_values
        takes = inspect.signature(self.language.forward).parameters
        self.cache_name = "cache" if "cache" in takes else "past_key_values"

    def connector(self, name: str, num_tokens: int, extra_token: str | None) -> connectors.Connector:
        return connector_of(self.shape, name, num_tokens, extra_token).to(self.device, self.dtype).eval()

    @torch.no_grad()
    def features(self) -> Tensor:
        """The tower's last layer but one, as LLaVA takes it."""
        return self.tower(self.image, output_hidden_states=True).hidden_states[-2]

    @torch.no_grad()
    def first(self, connector: connectors.Connector) -> Any:
        """From image and text to the first logits; returns what the language model returned."""
        before, after = self.language.get_input_embeddings()(self.words).tensor_split(2, dim=1)
        prompt = torch.cat([before, connect(connector, self.features()), after], dim=1)
        return self.language(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)

    def cache(self, connector: connectors.Connector) -> Any:
        """Keys and values of image and text."""
        return getattr(self.first(connector), self.cache_name)

    @torch.no_grad()
    def later(self, cache: Any) -> None:
        """The tokens after the first; the cache is as before afterwards."""
        word = self.words[:, :1]
        for _ in range(self.new - 1):
            word = self.language(input_ids=word, use_cache=True, **{self.cache_name: cache}).logits.argmax(-1)
        cache.crop(1 - self.new)

    def answer(self, connector: connectors.Connector) -> None:
        self.later(self.cache(connector))


def times(
    shape: Shape, name: str, tokens: Sequence[int], extra_token: str | None, text: int, new: int, rounds: int,
    threads: int, dtype: str, device: str, progress: bool,
) -> Times:  # fmt: skip
    """Speed of the first token, of the later ones and of the whole answer, for each number of tokens; most = 1."""
    timed = Timed(shape, text, new, dtype, device)
    ready = {str(count): timed.connector(name, count, extra_token) for count in tokens}
    caches = {count: timed.cache(connector) for count, connector in ready.items()}
    base = str(max(tokens))
    calls: dict[str, dict[str, Callable[[], object]]] = {
        "first token": {count: partial(timed.first, connector) for count, connector in ready.items()},
        "later tokens": {count: partial(timed.later, cache) for count, cache in caches.items()},
        "answer": {count: partial(timed.answer, connector) for count, connector in ready.items()},
    }
    calls["first token"]["vision"] = timed.features
    clock = clock_for(threads, device)
    result = Times(shape, base, dtype, {}, clock_name(threads, device))
    for part, candidates in calls.items():
        title = f"{part}, {shape.name}" if progress else None
        seconds = interleave(candidates, base, rounds, clock, title=title)
        result.parts[part] = Speeds.of(seconds, candidates, base, base)
    return result


# -- the report ----------------------------------------------------------------------------------------


def connector_report(
    models: Sequence[str] = ("7b", "13b"),
    timed: str = "eighth",
    connector: str = "sec",
    tokens: Sequence[int] = (576, 288, 256, 192, 144, 128, 64),
    extra_token: str = "cls",
    text: int = 64,
    new: int = 32,
    rounds: int = 7,
    threads: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    json: str | None = None,
    progress: bool = True,
) -> ConnectorReport:
    """Tables 7 to 9, the columns of tokens and speed: work, memory and time by the number of image tokens.

    Args:
        models: whose work and memory to work out: 7b, 13b, or the folder of a LLaVA with a CLIP tower.
        timed: what to time, with random weights: eighth (7b with an eighth of its widths and depths), 7b, ..., or none.
        connector: what reduces the tokens; all of them go through LLaVA's MLP.
        tokens: numbers of image tokens.
        extra_token: cls, mean or none: one token more, in front, as in the paper's 576+1.
        text: tokens of text around the image.
        new: tokens of the answer.
        rounds: measurements of each, after a warm-up.
        threads: 1 measures processor time, more measure wall clock, as a GPU does.
        dtype: float32 or bfloat16, of the timed model; bytes are always of two-byte numbers.
        device: cpu or cuda, of the timed model.
        json: write the result to this file.
        progress: show a bar.
    """
    _check(connector, tokens, text, new, rounds)
    check_settings([dtype], device, json)
    extra = None if extra_token == "none" else extra_token
    shapes = [shape_of(model) for model in models]
    counts = sorted({*tokens}, reverse=True)
    recipe = {
        "models": [shape.name for shape in shapes], "connector": connector, "tokens": counts,
        "extra_token": extra, "text": text, "new": new, "rounds": rounds, "threads": threads, "dtype": dtype,
    }  # fmt: skip
    report = ConnectorReport(head("secvit bench connector", recipe, threads, device))
    for shape in shapes:
        rows, notes = work(shape, connector, counts, extra, text, new)
        report.models.append(ModelWork(shape, rows))
        report.notes += [note for note in notes if note not in report.notes]
    if timed != "none":
        shape = shape_of(timed)
        possible = [row.tokens for row in work(shape, connector, counts, extra, text, new)[0]]
        with using_threads(threads):
            report.timed = times(shape, connector, possible, extra, text, new, rounds, threads, dtype, device, progress)
    if json is not None:
        save_result(report.written(), json)
    return report


def _check(connector: str, tokens: Sequence[int], text: int, new: int, rounds: int) -> None:
    if text < 2 or new < 2 or rounds < 1 or not tokens:
        raise ValueError(f"text={text}, new={new}, rounds={rounds}, tokens={list(tokens)}; give 2, 2, 1, one or more")
    connectors.CONNECTORS.named(connector)
