"""Conversations as tokens: LLaVA-1.5's two templates, and which tokens are the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import LlavaImageProcessor, ProcessorMixin

IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
_TEXT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
)
_IMAGES = (
    "{% if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ 'IMAGE' }}{% endfor %}{% endif %}"
)
# The space after "ASSISTANT:" belongs to the answer: tokenizers make it one piece with the first word, and a word
# that is not all in the answer would never be learned.
V1 = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '" + SYSTEM.replace("'", "\\'") + "' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}" + _TEXT + "{{ ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}" + _IMAGES.replace("IMAGE", IMAGE + "\\n") + _TEXT + "{{ ' ' }}"
    "{% else %}{{ 'ASSISTANT:' }}{% generation %}{{ ' ' }}" + _TEXT + "{{ eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}"
    + _TEXT
    + "{{ '\\n' }}{% endgeneration %}{% else %}"
    + _IMAGES.replace("IMAGE", IMAGE)
    + "{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {"v1": V1, "plain": PLAIN}


class Sample(NamedTuple):
    """One conversation: its images, and questions with their answers.

    An image stands before the question that named it: images (paths), the turn of each, (question, answer) pairs.
    """

    id: str
    images: tuple[str, ...]
    places: tuple[int, ...]
    turns: tuple[tuple[str, str], ...]


class Encoded(NamedTuple):
    """The tokens of a conversation, an image's repeated as often as the connector gives, and which are learned.

    starts: where each answer begins.
    """

    ids: list[int]
    supervised: list[bool]
    starts: list[int]


def messages(sample: Sample) -> list[dict[str, Any]]:
    """A conversation as transformers' chat templates take it."""
    turns: list[dict[str, Any]] = []
    for i, (question, answer) in enumerate(sample.turns):
        images = [{"type": "image"} for place in sample.places if place == i]
        turns.append({"role": "user", "content": [*images, {"type": "text", "text": question}]})
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


class Chat:
    """A processor's way to write conversations down, with the answers marked.

    An answer is what the text of a conversation goes on with after the prompt that `generate` would be given, so
    that what is learned is what will be asked for.
    """

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.template = processor.chat_template or self.tokenizer.chat_template
        if not self.template:
            raise ValueError('the processor has no chat template; choose one by template="v1" or "plain"')
        self.image_id: int = processor.image_token_id
        self.image_tokens = image_tokens(processor)

    def text(self, turns: Sequence[dict[str, Any]], prompt: bool) -> str:
        """Messages as one text; with `prompt`, up to where the next answer begins."""
        return self.tokenizer.apply_chat_template(
            list(turns), chat_template=self.template, tokenize=False, add_generation_prompt=prompt
        )

    def spans(self, turns: Sequence[dict[str, Any]], text: str) -> list[tuple[int, int]]:
        """Where the answers lie in the whole text, in characters."""
        spans = []
        for i in range(0, len(turns), 2):
            before, after = self.text(turns[: i + 1], prompt=True), self.text(turns[: i + 2], prompt=False)
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    f"the chat template writes {before[-30:]!r} before an answer and {after[-30:]!r} with it, which "
                    'does not go on from there; choose template="v1"'
                )
            spans.append((len(before), len(after)))
        return spans

    def encode(self, sample: Sample) -> Encoded:
        """The tokens of a sample; a ValueError where a token is neither all prompt nor all answer."""
        turns = messages(sample)
        text = self.text(turns, prompt=False)
        made = self.tokenizer(text, add_special_tokens=self.begins(text), return_offsets_mapping=True)
        spans = self.spans(turns, text)
        ids: list[int] = []
        supervised: list[bool] = []
        starts: dict[tuple[int, int], int] = {}
        for token, (start, end) in zip(made["input_ids"], made["offset_mapping"], strict=True):
            touched = next(((a, b) for a, b in spans if start < b and end > a), None)
            if touched and not touched[0] <= start <= end <= touched[1]:
                raise ValueError(
                    f"the token {text[start:end]!r} is half prompt, half answer; choose a chat template that puts the "
                    'space before an answer inside of it, like template="v1"'
                )
            if touched:
                starts.setdefault(touched, len(ids))
            count = self.image_tokens if token == self.image_id else 1
            ids += [token] * count
            supervised += [touched is not None] * count
        return Encoded(ids, supervised, list(starts.values()))

    def prompt(self, sample: Sample, turn: int) -> list[int]:
        """The tokens that `generate` is given for the answer of a turn, by a text of its own."""
        text = self.text(messages(sample)[: 2 * turn + 1], prompt=True)
        made = self.tokenizer(text, add_special_tokens=self.begins(text))["input_ids"]
        return [token for one in made for token in [one] * (self.image_tokens if one == self.image_id else 1)]

    def begins(self, text: str) -> bool:
        """Whether the tokenizer has to add its first token, as processors decide it: not if the text has it."""
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))


def check_prompt(chat: Chat, sample: Sample) -> None:
    """A ValueError unless the tokens of each turn's prompt are those before its answer in the whole."""
    ids, _, starts = chat.encode(sample)
    if len(starts) != len(sample.turns):
        raise ValueError(f"{len(sample.turns)} answers, of which the chat template writes {len(starts)}")
    for turn, start in enumerate(starts):
        if chat.prompt(sample, turn) != ids[:start]:
            raise ValueError(
                f"the tokens of the prompt change where the answer {sample.turns[turn][1][:30]!r} follows, so "
                'generation would begin elsewhere than training; choose template="v1"'
            )


def image_tokens(processor: Any) -> int:
    """Tokens of an image by its processor, which have to be the same for all."""
    counts = {
        processor._get_num_multimodal_tokens(image_sizes=[size]).num_image_tokens[0]  # what servers ask, too
        for size in ((336, 336), (200, 800))
    }
    if len(counts) != 1:
        raise NotImplementedError(
            f"{type(processor).__name__} gives images {sorted(counts)} tokens by their size; training knows "
            "LLaVA-1.5's processors, whose images all have the same"
        )
    return counts.pop()


def prepare(processor: ProcessorMixin, template: str | None, pad: bool) -> ProcessorMixin:
    """The processor with one of our templates and LLaVA-1.5's square images, in place."""
    if template is not None:
        processor.chat_template = processor.tokenizer.chat_template = TEMPLATES[template]
    image_processor = processor.image_processor
    if pad and not getattr(image_processor, "do_pad", False):
        names = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
        kept = {
            name: getattr(image_processor, name) for name in names if getattr(image_processor, name, None) is not None
        }
        processor.image_processor = LlavaImageProcessor(**kept, do_pad=True)
    return processor
