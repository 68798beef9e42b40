"""`secvit bench connector`: what fewer image tokens save in a LLaVA, split into tower, connector, prefill and decode.

Work and memory are worked out from a configuration's numbers, so 7B and 13B need no weights.  Times are ratios
within a round (see `rounds`) of a model of random weights, scaled down where there is no GPU for the whole one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secvit import connectors
from secvit.hub import hub
from secvit.measure.macs import count_macs
from secvit.measure.results import environment_lines, head, save_result, shown_ratio, table, using_threads
from secvit.measure.rounds import NULL, clock_for, clock_name, interleave, is_quiet, speed_ratio
from secvit.measure.speed import DTYPES, check_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Speed as printed, 576 tokens = 1: table 7 for 7B, tables 8 and 9 for 13B.  Table 11 and supplement table 3 print
# almost the same for hours of training (1.6 at 256).  Batch, text and length of the answers are not told.
PAPER = {"LLaVA-1.5-7B": {288: 1.5, 256: 1.7, 192: 1.9, 144: 2.1}, "LLaVA-1.5-13B": {256: 1.8, 144: 2.2}}


@dataclass(frozen=True)
class Shape:
    """The numbers of a LLaVA: a CLIP tower (image and patch in px) and a Llama-like language model."""

    name: str
    image_size: int
    patch_size: int
    vision_dim: int
    vision_mlp: int
    vision_layers: int
    vision_heads: int
    dim: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


SHAPES = {
    "7b": Shape("LLaVA-1.5-7B", 336, 14, 1024, 4096, 24, 16, 4096, 11008, 32, 32, 32, 128, 32064),
    "13b": Shape("LLaVA-1.5-13B", 336, 14, 1024, 4096, 24, 16, 5120, 13824, 40, 40, 40, 128, 32064),
    "eighth": Shape("an eighth of LLaVA-1.5-7B", 336, 14, 128, 512, 3, 2, 512, 1376, 4, 4, 4, 128, 4008),
}


def shape_of(model: str) -> Shape:
    """A shape by name ("7b", "13b", "eighth"), or that of a LLaVA's folder, config.json or hub name."""
    if model in SHAPES:
        return SHAPES[model]
    from transformers import AutoConfig

    try:
        with hub(model):
            config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{model}: ")
        raise ValueError(f"{model}: no model by that name or folder ({reason}); choose {', '.join(SHAPES)}") from None
    vision, text = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if vision is None or text is None or vision.model_type != "clip_vision_model":
        raise ValueError(
            f"{model}: {config.model_type} is no LLaVA with a CLIP tower; give one, or {', '.join(SHAPES)}"
        )
    return Shape(
        Path(model).name, vision.image_size, vision.patch_size, vision.hidden_size, vision.intermediate_size,
        vision.num_hidden_layers, vision.num_attention_heads, text.hidden_size, text.intermediate_size,
        text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads,
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads, text.vocab_size,
    )  # fmt: skip


# -- work and memory, from the numbers ---------------------------------------------------------------


def vision_macs(shape: Shape) -> int:
    """Multiply-accumulates of the tower for one image: all its layers run, also the last, which LLaVA does not use."""
    dim, length = shape.vision_dim, shape.patches + 1
    patches = shape.patches * 3 * shape.patch_size**2 * dim
    layer = length * (4 * dim**2 + 2 * dim * shape.vision_mlp) + 2 * length**2 * dim
    return patches + shape.vision_layers * layer


def prefill_macs(shape: Shape, length: int) -> int:
    """Multiply-accumulates of the language model over a prompt, to the first logits; attention counted unmasked."""
    attention = 2 * length**2 * shape.heads * shape.head_dim
    return shape.layers * (length * _layer_weights(shape) + attention) + shape.dim * shape.vocab


def decode_macs(shape: Shape, length: int, new: int) -> int:
    """Multiply-accumulates of the tokens after the first of `new`, one by one, after a prompt of `length`."""
    keys = sum(range(length + 1, length + new))
    return (new - 1) * _read_weights(shape) + 2 * shape.layers * shape.heads * shape.head_dim * keys


def kv_bytes(shape: Shape, length: int, bytes_each: int = 2) -> int:
    """Keys and values of `length` tokens; two bytes each in float16 and bfloat16."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * length * bytes_each


def step_bytes(shape: Shape, length: int, batch: int = 1, bytes_each: int = 2) -> int:
    """What one decoding step has to read: every weight once, and the keys and values of each sample."""
    return bytes_each * _read_weights(shape) + batch * kv_bytes(shape, length, bytes_each)


def _layer_weights(shape: Shape) -> int:
    attention = 2 * shape.dim * shape.head_dim * (shape.heads + shape.kv_heads)
    return attention + 3 * shape.dim * shape.mlp


def _read_weights(shape: Shape) -> int:
    return shape.layers * _layer_weights(shape) + shape.dim * shape.vocab


def connector_of(shape: Shape, name: str, num_tokens: int, extra_token: str | None) -> connectors.Connector:
    """The connector that gives so many tokens; LLaVA's MLP where that is all of them."""
    name = "mlp" if num_tokens == shape.patches else name
    options = {"extra_token": extra_token, "num_patches": shape.patches}
    return connectors.create(name, shape.vision_dim, shape.dim, num_tokens, **options)


def connector_macs(shape: Shape, connector: connectors.Connector) -> int:
    """Multiply-accumulates of a connector for one image, norms and scores included."""
    return count_macs(_OnTower(connector), (1, shape.patches + 1, shape.vision_dim)).total


class _OnTower(nn.Module):
    """A connector that is given (B, 1, 1 + L, C), [cls] first."""

    def __init__(self, connector: connectors.Connector) -> None:
        super().__init__()
        self.connector = connector

    def forward(self, features: Tensor) -> Tensor:
        return _connect(self.connector, features.squeeze(1))


def _connect(connector: connectors.Connector, features: Tensor) -> Tensor:
    """Features (B, 1 + L, C) to tokens.  The [cls] attention some ask for is a row that the tower has anyway."""
    attention = features.new_ones(features.shape[0], features.shape[1] - 1) / (features.shape[1] - 1)
    return connector(features[:, 1:], cls=features[:, 0], cls_attention=attention)


def work(
    shape: Shape, name: str, tokens: Sequence[int], extra_token: str | None, text: int, new: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each number of tokens; and what a connector cannot do, in its own words."""
    rows, notes = [], []
    for count in tokens:
        try:
            with torch.device("meta"):
                connector = connector_of(shape, name, count, extra_token)
        except ValueError as error:
            notes.append(f"{name} at {count}: {error}")
            continue
        length = text + connector.num_output_tokens(shape.patches)
        rows.append({
            "tokens": count, "connector": connector.name, "prompt": length,
            "parameters": sum(p.numel() for p in connector.parameters()),
            "macs": {
                "vision": vision_macs(shape), "connector": connector_macs(shape, connector),
                "prefill": prefill_macs(shape, length), "decode": decode_macs(shape, length, new),
            },
            "kv_bytes": kv_bytes(shape, length + new - 1),
            "step_bytes": {batch: step_bytes(shape, length, batch) for batch in (1, 32)},
        })  # fmt: skip
    return rows, notes


# -- time ----------------------------------------------------------------------------------------------


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
        prompt = torch.cat([before, _connect(connector, self.features()), after], dim=1)
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
) -> dict[str, Any]:  # fmt: skip
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
    found: dict[str, Any] = {"shape": asdict(shape), "base": base, "dtype": dtype, "parts": {}}
    found["clock"] = clock_name(threads, device)
    for part, candidates in calls.items():
        title = f"{part}, {shape.name}" if progress else None
        seconds = interleave(candidates, base, rounds, clock, title=title)
        found["parts"][part] = {
            "speeds": {count: vars(speed_ratio(seconds, count, base)) for count in candidates},
            "null": vars(speed_ratio(seconds, base + NULL, base)), "quiet": is_quiet(seconds, base),
            "seconds": seconds,
        }  # fmt: skip
    return found


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
) -> dict[str, Any]:
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
    if text < 2 or new < 2 or rounds < 1 or not tokens:
        raise ValueError(f"text={text}, new={new}, rounds={rounds}, tokens={list(tokens)}; give 2, 2, 1, one or more")
    if connector not in connectors.NAMES:
        raise ValueError(f"no connector {connector!r}; choose one of {', '.join(connectors.NAMES)}")
    check_settings([dtype], device, json)
    extra = None if extra_token == "none" else extra_token
    shapes = [shape_of(model) for model in models]
    counts = sorted({*tokens}, reverse=True)
    recipe = {
        "models": [shape.name for shape in shapes], "connector": connector, "tokens": counts,
        "extra_token": extra, "text": text, "new": new, "rounds": rounds, "threads": threads, "dtype": dtype,
    }  # fmt: skip
    result: dict[str, Any] = {
        **head("secvit bench connector", recipe, threads, device),
        "models": [],
        "timed": None,
        "notes": [],
    }
    for shape in shapes:
        rows, notes = work(shape, connector, counts, extra, text, new)
        result["models"].append({"shape": asdict(shape), "rows": rows})
        result["notes"] += [note for note in notes if note not in result["notes"]]
    if timed != "none":
        shape = shape_of(timed)
        possible = [row["tokens"] for row in work(shape, connector, counts, extra, text, new)[0]]
        with using_threads(threads):
            result["timed"] = times(
                shape, connector, possible, extra, text, new, rounds, threads, dtype, device, progress
            )
    if json is not None:
        save_result(result, json)
    return result


def connector_markdown(result: dict[str, Any]) -> str:
    """The tables of a `connector_report`."""
    recipe, versions = result["recipe"], result["versions"]
    extra = "" if recipe["extra_token"] is None else " + 1"
    lines = [
        f"## {recipe['connector']}: an image, {recipe['text']} tokens of text, an answer of {recipe['new']}", "",
        f"secvit {versions['secvit']}, torch {versions['torch']}; commit {result['commit']}; {result['date'][:10]}.",
        *result["notes"], "",
    ]  # fmt: skip
    for model in result["models"]:
        lines += _work_table(model, extra)
    if result["timed"] is not None:
        lines += _time_table(result, extra)
    return "\n".join(lines) + "\n"


def _work_table(model: dict[str, Any], extra: str) -> list[str]:
    name, rows = model["shape"]["name"], model["rows"]
    columns = [
        "image tokens", "by", "parameters", "GMAC: tower", "connector", "prefill", "decode", "all",
        "all, times less", "KV cache, MiB", "a decoding step reads, times less", "32 at a time", "paper's speed",
    ]  # fmt: skip
    base, cells = rows[0], []
    for row in rows:
        total, most = (sum(found["macs"].values()) for found in (row, base))
        reads = [f"{base['step_bytes'][batch] / row['step_bytes'][batch]:.2f}" for batch in row["step_bytes"]]
        printed = PAPER.get(name, {}).get(row["tokens"])
        cells.append([
            f"{row['tokens']}{extra}", row["connector"], f"{row['parameters'] / 1e6:.1f} M",
            *(f"{row['macs'][part] / 1e9:,.1f}" for part in ("vision", "connector", "prefill", "decode")),
            f"{total / 1e9:,.0f}", f"{most / total:.2f}", f"{row['kv_bytes'] / 2**20:,.0f}", *reads,
            f"{printed}" if printed else "",
        ])  # fmt: skip
    return [f"### {name}: work and memory, from its numbers", "", *table(columns, cells), ""]


def _time_table(result: dict[str, Any], extra: str) -> list[str]:
    found, base = result["timed"], result["timed"]["base"]
    parts = found["parts"]
    counts = [name for name in parts["answer"]["speeds"] if name != base]
    columns = ["image tokens", *parts, "paper's speed (7B)"]
    rows = []
    for count in counts:
        printed = PAPER["LLaVA-1.5-7B"].get(int(count))
        speeds = [shown_ratio(part["speeds"][count]) for part in parts.values()]
        rows.append([f"{count}{extra}", *speeds, f"{printed}" if printed else ""])
    first = parts["first token"]["seconds"]
    vision = sorted(v / t for v, t in zip(first["vision"], first[base], strict=True))[len(first[base]) // 2]
    nulls = ", ".join(f"{part['null']['median']:.2f}" for part in parts.values())
    noisy = [name for name, part in parts.items() if not part["quiet"]]
    return [
        f"### {found['shape']['name']}, random weights: speed, {base}{extra} tokens = 1", "",
        f"{result['hardware']}; {found['dtype']}, {found['clock']}, {result['recipe']['rounds']} rounds.",
        *environment_lines(result),
        *([f"**Too noisy to quote**: {', '.join(noisy)}."] if noisy else []), "",
        *table(columns, rows), "",
        f"Null pair ({base} twice): {nulls}. The tower takes {100 * vision:.0f} % of the time to the first token at "
        f"{base}, and is not made faster.",
    ]  # fmt: skip
