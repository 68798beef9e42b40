"""LLaVA's conversation JSON with pictures in folders: read, checked before the first step, batched by length."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from secvit.images import check_skipped, read_image, upright_size
from secvit.train.shares import is_first, of_all_processes, share
from secvit.vlm.chat import IMAGE, Chat, Sample, check_prompt, messages
from secvit.vlm.config import Samples

logger = logging.getLogger(__name__)

NAMED = 20  # faults that an error names
IGNORED = -100  # of labels: no answer
PROBED = 200  # samples whose prompts are compared with their answers token by token
MEGABATCH = 50  # batches among which samples of similar length are put together
SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


# -- files -------------------------------------------------------------------------------------


def files(data: str | Path, chosen: Samples) -> tuple[Path, Path | None]:
    """The JSON files of training and of held-out conversations, None where there are none."""
    data = Path(data)
    val = Path(chosen.val) if chosen.val else None
    if not data.is_dir():
        return data, val
    train = data / "train.json"
    if not train.is_file():
        found = [path for path in sorted(data.glob("*.json")) if path.name != "val.json"]
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise ValueError(f"{data}: expected train.json or a single JSON file, found {names}; give --data FILE.json")
        train = found[0]
    beside = data / "val.json"
    return train, val or (beside if beside.is_file() else None)


def root_of(file: Path, images: str | None) -> Path:
    """The folder in which a file's pictures lie."""
    if images:
        root = Path(images)
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; give the pictures' folder as --samples.images DIR")
        return root
    return file.parent / "images" if (file.parent / "images").is_dir() else file.parent


def read_samples(file: Path, images: str | None = None) -> tuple[list[Sample], list[str]]:
    """The conversations of a file, and what is wrong with those that are left out, by their ids."""
    try:
        entries = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error}); expected LLaVA's list of conversations") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file}: expected a list of LLaVA's conversations, found {type(entries).__name__}, or none")
    root, samples, faults = root_of(file, images), [], []
    for number, entry in enumerate(entries):
        name = f"sample {str(entry['id'])!r}" if isinstance(entry, dict) and "id" in entry else f"entry {number}"
        try:
            samples.append(sample(entry, str(number), root))
        except ValueError as error:
            faults.append(f"{name}: {error}")
    return samples, faults


def sample(entry: Any, number: str, root: Path) -> Sample:
    """One entry of the JSON: {"id", "image": path or list of them, "conversations": [{"from", "value"}, ...]}.

    Each picture is named by one <image> in a question, and stands before that question's words, as LLaVA-1.5 puts
    it.  An answer before the first question is left out, as there.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise ValueError('expected {"id": ..., "image": ..., "conversations": [...]}')
    said = [(turn.get("from"), turn.get("value")) for turn in entry["conversations"] if isinstance(turn, dict)]
    if any(who not in SPEAKERS or not isinstance(text, str) for who, text in said) or not said:
        raise ValueError('each turn needs "from", human or gpt, and a text as "value"')
    if SPEAKERS[said[0][0]] == 1:
        said = said[1:]
    if not said or len(said) % 2 or any(SPEAKERS[who] != i % 2 for i, (who, _) in enumerate(said)):
        raise ValueError("expected human and gpt in turns, gpt last, found " + ", ".join(str(who) for who, _ in said))
    named = entry.get("image") or []
    images = [named] if isinstance(named, str) else list(named)
    places, turns = [], []
    for i, ((_, question), (_, answer)) in enumerate(zip(said[::2], said[1::2], strict=True)):
        if IMAGE in answer:
            raise ValueError(f"{IMAGE} in answer {i + 1}; pictures belong to questions")
        if not answer.strip():
            raise ValueError(f"answer {i + 1} is empty")
        places += [i] * question.count(IMAGE)
        turns.append((question.replace(IMAGE, "").strip(), answer.strip()))
    if len(places) != len(images):
        pictures = "one picture" if len(images) == 1 else f"{len(images)} pictures"
        raise ValueError(f"{len(places)} {IMAGE} in the questions for {pictures}; write one for each")
    paths = tuple(str(root / path) for path in images)
    return Sample(str(entry.get("id", number)), paths, tuple(places), tuple(turns))


# -- checks ------------------------------------------------------------------------------------


def load(file: Path, chosen: Samples, chat: Chat) -> tuple[list[Sample], list[int]]:
    """A file's conversations and their lengths in tokens; a ValueError names all that cannot be used by their ids.

    Of many processes, each checks a share.
    """
    samples, faults = read_samples(file, chosen.images)
    faults += of_all_processes(broken_pictures(samples, chosen.check))
    if chosen.template == "plain":
        faults += [
            f"sample {one.id!r}: {len(one.images)} pictures, {len(one.turns)} answers; the plain template is for "
            "captions"
            for one in samples
            if not one.images or len(one.turns) > 1
        ]
    lengths = all_lengths(chat, samples)
    long = [i for i, length in enumerate(lengths) if length > chosen.max_length]
    if chosen.too_long == "error":
        faults += [
            f"sample {samples[i].id!r}: {lengths[i]} tokens, {chat.image_tokens * len(samples[i].images)} of them for "
            f"pictures, and max_length is {chosen.max_length}; raise it, shorten the sample, or leave such samples out "
            "by --samples.too_long drop"
            for i in long
        ]
    elif long:
        logger.warning("%s: %d of %d samples left out, longer than %d tokens: %s", file, len(long), len(samples),
                       chosen.max_length, ", ".join(samples[i].id for i in long[:3]))  # fmt: skip
    if not faults:
        faults = prompt_faults(chat, samples)
    if faults:
        more = f"\n  and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise ValueError(f"{file}: samples that cannot be used:\n  " + "\n  ".join(faults[:NAMED]) + more)
    kept = [i for i in range(len(samples)) if lengths[i] <= chosen.max_length]
    if not kept:
        raise ValueError(f"{file}: no sample of at most {chosen.max_length} tokens; raise --samples.max_length")
    return [samples[i] for i in kept], [lengths[i] for i in kept]


def broken_pictures(samples: Sequence[Sample], check: str) -> list[str]:
    """What is wrong with this process's share of the pictures, each read once, by the samples that show it."""
    first: dict[str, str] = {}
    for one in samples:
        for path in one.images:
            first.setdefault(path, one.id)
    paths = list(first)
    mine = [paths[i] for i in share(len(paths))]

    def fault(path: str) -> str:
        try:
            if not Path(path).is_file():
                raise ValueError(f"{path}: no such file; check the path and --samples.images")
            read_image(path) if check == "whole" else upright_size(path)
        except ValueError as error:
            return f"sample {first[path]!r}: {error}"
        return ""

    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(fault, mine), "checking pictures", len(mine), disable=not is_first() or None, leave=False)
        return [text for text in found if text]


def all_lengths(chat: Chat, samples: Sequence[Sample], at_once: int = 1000) -> list[int]:
    """Tokens of each sample, those of pictures included."""
    mine, lengths = share(len(samples)), [0] * len(samples)
    counted: list[tuple[int, int]] = []
    for at in tqdm(range(0, len(mine), at_once), "counting tokens", disable=not is_first() or None, leave=False):
        part = mine[at : at + at_once]
        texts = [chat.text(messages(samples[i]), prompt=False) for i in part]
        made = chat.tokenizer(texts, add_special_tokens=chat.begins(texts[0]))["input_ids"]
        extra = chat.image_tokens - 1
        counted += [(i, len(ids) + extra * len(samples[i].images)) for i, ids in zip(part, made, strict=True)]
    for i, length in of_all_processes(counted):
        lengths[i] = length
    return lengths


def prompt_faults(chat: Chat, samples: Sequence[Sample]) -> list[str]:
    """Samples, of some evenly chosen ones, whose answers do not go on where their prompts end."""
    faults = []
    for one in samples[:: max(1, len(samples) // PROBED)]:
        try:
            check_prompt(chat, one)
        except ValueError as error:
            faults.append(f"sample {one.id!r}: {error}")
    return faults


# -- batches -----------------------------------------------------------------------------------


class Conversations:
    """Batches of conversations by sampler keys, padded on the right.

    {"input_ids", "attention_mask", "labels" (B, L), -100 but for answers; "pixel_values" (n, 3, S, S) of the n
    pictures in order, absent where there are none}.  As `train_dataset` of transformers' Trainer, with `collate`.

    cached: instead of pixels, gives {"given": what the connector is given} for some pictures.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        chat: Chat,
        lengths: Sequence[int],
        group: int = 0,
        cached: Callable[[Sequence[str]], dict[str, Any]] | None = None,
    ) -> None:
        self.samples, self.chat, self.cached, self.group = samples, chat, cached, group
        self.lengths = torch.tensor(lengths)
        self.pictures = torch.tensor([bool(one.images) for one in samples])
        # one byte per sample in memory that the loading processes share with this one
        self.broken = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int) -> dict[str, Any]:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int]) -> dict[str, Any]:
        """A batch; the next whole sample stands in for one with a broken picture."""
        chosen, opened = [], []
        for key in keys:
            one, images = self.open_or_next(key % len(self))
            chosen.append(one)
            opened += images
        batch: dict[str, Any] = dict(self.tokens(chosen))
        if opened and self.cached:
            return {**batch, **self.cached(opened)}
        if opened:
            batch["pixel_values"] = self.chat.processor.image_processor(opened, return_tensors="pt")["pixel_values"]
        return batch

    @staticmethod
    def collate(batch: Any) -> Any:
        return batch

    def tokens(self, chosen: Sequence[Sample]) -> dict[str, Tensor]:
        """Token ids, attention mask and labels of some samples."""
        encoded = []
        for one in chosen:
            try:
                encoded.append(self.chat.encode(one))
            except ValueError as error:
                raise ValueError(f"sample {one.id!r}: {error}") from None
        size, tokenizer = (len(encoded), max(len(e.ids) for e in encoded)), self.chat.tokenizer
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids, labels = torch.full(size, padding), torch.full(size, IGNORED)
        mask = torch.zeros(size, dtype=torch.long)
        for row, (tokens, supervised, _) in enumerate(encoded):
            here = slice(len(tokens))
            ids[row, here], mask[row, here] = torch.tensor(tokens), 1
            labels[row, here] = ids[row, here].where(torch.tensor(supervised), IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def open_or_next(self, index: int) -> tuple[Sample, list[Any]]:
        """A sample and its pictures, or their paths where what they become is kept."""
        while True:
            one = self.samples[index]
            if self.cached:
                return one, list(one.images)
            images = self.open(index)
            if images is not None:
                return one, images
            index = (index + 1) % len(self)

    def open(self, index: int) -> list[Image.Image] | None:
        """The pictures of a sample, or None if one is broken: counted, named once, fatal above the limit."""
        try:
            return [read_image(path) for path in self.samples[index].images]
        except ValueError as error:
            if not self.broken[index]:
                self.broken[index] = 1
                logger.warning("skipped: sample %r: %s", self.samples[index].id, error)
                check_skipped(self.skipped, len(self))
            return None

    @property
    def skipped(self) -> list[str]:
        """The ids of samples found broken so far."""
        return [self.samples[i].id for i in self.broken.nonzero().flatten().tolist()]

    def order(self, generator: torch.Generator) -> Tensor:
        """One epoch's samples in order: batches of similar length, each with pictures or without."""
        if not self.group:
            return torch.randperm(len(self), generator=generator)
        return grouped(self.lengths, self.pictures, self.group, generator)


def grouped(lengths: Tensor, pictures: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """A random order (n,) whose batches hold samples of similar length, with pictures or all without.

    As in LLaVA-1.5: within megabatches of random samples of one kind, sorted by length; then batches in random order.
    What fills no batch of its kind makes mixed ones, and what fills none of these comes last.
    """
    shuffled = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    rest: list[Tensor] = []
    for kind in (True, False):
        mine = shuffled[pictures[shuffled] == kind]
        full = len(mine) // batch_size * batch_size
        rest.append(mine[full:])
        for mega in mine[:full].split(MEGABATCH * batch_size):
            batches += mega[lengths[mega].argsort(descending=True, stable=True)].split(batch_size)
    left = torch.cat(rest)
    left = left[torch.randperm(len(left), generator=generator)]
    full = len(left) // batch_size * batch_size
    batches += left[:full].split(batch_size) if full else ()
    turns = torch.randperm(len(batches), generator=generator).tolist()
    return torch.cat([*(batches[i] for i in turns), left[full:]])


def texts(samples: Iterable[Sample]) -> Iterator[str]:
    """All that is said, for a tokenizer to learn from."""
    return (text for one in samples for turn in one.turns for text in turn)
