"""Conversations with their images: checked before the first step, batched by length."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from secvit.fields import NAMED, Faults
from secvit.images import check_skipped, read_image, upright_size
from secvit.images.files import is_stray
from secvit.processes import is_first, of_all_processes, share
from secvit.progress import reading
from secvit.splits import split_of
from secvit.vlm.chat import Chat, Sample, check_prompt, messages
from secvit.vlm.config import Samples
from secvit.vlm.conversations import Packed, read_samples, sample, texts

__all__ = ["IGNORED", "Conversations", "files", "grouped", "load", "read_samples", "sample", "texts"]

logger = logging.getLogger(__name__)

IGNORED = -100  # of labels: no answer
PROBED = 200  # samples whose prompts are compared with their answers token by token
PART = 10_000  # images whose checks wait at a time
MEGABATCH = 50  # batches among which samples of similar length are put together


# -- files -------------------------------------------------------------------------------------


def files(data: str | Path, chosen: Samples) -> tuple[Path, Path | None]:
    """The JSON files of training and of held-out conversations, None where there are none."""
    data = Path(data)
    val = Path(chosen.val) if chosen.val else None
    if not data.is_dir():
        return data, val
    by_split: dict[str | None, list[Path]] = {}
    for path in sorted(data.iterdir()):
        if path.suffix.lower() in (".json", ".jsonl") and path.is_file() and not is_stray(path.name):
            by_split.setdefault(split_of(path.stem), []).append(path)
    train, held_out = by_split.get("train") or by_split.get(None, []), by_split.get("val", [])
    if len(train) != 1 or len(held_out) > 1:
        names = ", ".join(path.name for paths in by_split.values() for path in paths) or "none"
        raise ValueError(
            f"{data}: expected train.json or a single JSON file, found {names}; give --data FILE.json, and the "
            "held-out ones as --samples.val FILE.json"
        )
    return train[0], val or (held_out[0] if held_out else None)


# -- checks ------------------------------------------------------------------------------------


@reading
def load(file: Path, chosen: Samples, chat: Chat) -> tuple[Packed, list[int]]:
    """A file's conversations and their lengths in tokens; a ValueError names what cannot be used, by entry and id.

    With `drop_broken` it is left out instead, and a line in the log names it.  Of many processes, each checks a share.
    """
    mended: list[str] = []
    samples, broken = read_samples(file, chosen.images, chosen.drop_broken, mended)
    total, faults, remedies = len(samples) + len(broken), Faults(file), []
    broken_files = broken_images(samples, chosen.check)
    unseen, others = unusable(samples, broken_files, chosen.template)
    broken += [*unseen.values(), *others.values()]
    if missing := sum(not os.path.isfile(path) for path in broken_files):
        remedies.append(f"{missing:,} images are missing below {samples.root}; check --samples.images")
    if not chosen.drop_broken:
        faults.messages += broken
        remedies += ["--samples.drop_broken true leaves such samples out"] if broken else []
    elif len(unseen) > max(1, total // 100):  # what training would end for
        faults.messages += unseen.values()
        remedies.append(f"{len(unseen):,} of {total:,} samples, which is too many to leave out")
    else:
        samples = samples.take([i for i in range(len(samples)) if i not in unseen and i not in others])
    lengths = all_lengths(chat, samples)
    kept = [i for i, length in enumerate(lengths) if length <= chosen.max_length]
    check_long(file, samples, lengths, chosen, chat, faults)
    if not faults:
        faults.messages += prompt_faults(chat, samples.take(kept))
    faults.check("; ".join(remedies))
    if (broken or mended) and is_first():
        logger.warning("%s", used_line(file, total, broken, mended))
    if not kept:
        raise ValueError(
            f"{file}: no sample of at most {chosen.max_length} tokens; raise --samples.max_length, or repair the "
            f"{len(broken):,} broken samples"
        )
    if is_first():
        logger.info("%s: %s samples of up to %d tokens", file, f"{len(kept):,}", max(lengths[i] for i in kept))
    return samples.take(kept), [lengths[i] for i in kept]


def check_long(
    file: Path, samples: Packed, lengths: Sequence[int], chosen: Samples, chat: Chat, faults: Faults
) -> None:
    """Samples of too many tokens: faults, or, where they are left out, a line in the log."""
    long = [i for i, length in enumerate(lengths) if length > chosen.max_length]
    if chosen.too_long == "error":
        for i in long:
            faults.add(
                f"{samples.where(i)}: {lengths[i]} tokens, {chat.image_tokens * len(samples[i].images)} of them for "
                f"images, and max_length is {chosen.max_length}; raise it, shorten the sample, or leave such samples "
                "out by --samples.too_long drop"
            )
    elif long and is_first():
        logger.warning("%s: %d of %d samples left out, longer than %d tokens: %s", file, len(long), len(samples),
                       chosen.max_length, ", ".join(samples[i].id for i in long[:3]))  # fmt: skip


def used_line(file: Path, total: int, broken: Sequence[str], mended: Sequence[str]) -> str:
    """One line about samples that are left out, and those that are taken otherwise than they are written."""
    line = f"{file}: used {total - len(broken):,} of {total:,} samples"
    for what, some in (("left out", broken), ("taken as LLaVA takes them", mended)):
        if some:
            more = f"; and {len(some) - NAMED:,} more" if len(some) > NAMED else ""
            line += f"; {what}: {len(some):,} ({'; '.join(some[:NAMED])}{more})"
    return line


def unusable(
    samples: Packed, broken_files: Mapping[str, str], template: str | None
) -> tuple[dict[int, str], dict[int, str]]:
    """What is wrong, by index, with samples that show broken images, and with those that do not fit the template."""
    unseen, others = {}, {}
    for i, one in enumerate(samples) if broken_files or template == "plain" else ():
        if bad := [path for path in one.images if path in broken_files]:
            unseen[i] = f"{samples.where(i)}: {broken_files[bad[0]]}"
        elif template == "plain" and (not one.images or len(one.turns) > 1):
            others[i] = (
                f"{samples.where(i)}: {len(one.images)} images, {len(one.turns)} answers; the plain template is for "
                "captions"
            )
    return unseen, others


def broken_images(samples: Sequence[Sample], check: str) -> dict[str, str]:
    """What is wrong with each image that cannot be used, by its path.  Of many processes, each reads a share."""
    paths = list(dict.fromkeys(path for one in samples for path in one.images))
    own_paths = [paths[i] for i in share(len(paths))]

    def fault(path: str) -> str:
        try:
            if not os.path.isfile(path):
                raise ValueError(f"{path}: no such file; check the path and --samples.images")
            read_image(path) if check == "whole" else upright_size(path)
        except ValueError as error:
            return str(error)
        return ""

    faults: list[tuple[str, str]] = []
    with ThreadPoolExecutor() as pool:
        for at in tqdm(range(0, len(own_paths), PART), "checking images", disable=not is_first() or None, leave=False):
            part = own_paths[at : at + PART]  # the pool keeps an object for each that waits
            faults += [(path, what) for path, what in zip(part, pool.map(fault, part), strict=True) if what]
    return dict(of_all_processes(faults))


def all_lengths(chat: Chat, samples: Sequence[Sample], at_once: int = 1000) -> list[int]:
    """Tokens of each sample, those of images included."""
    indices, lengths = share(len(samples)), [0] * len(samples)
    counted: list[tuple[int, int]] = []
    for at in tqdm(range(0, len(indices), at_once), "counting tokens", disable=not is_first() or None, leave=False):
        part = indices[at : at + at_once]
        texts = [chat.text(messages(samples[i]), prompt=False) for i in part]
        made = chat.tokenizer(texts, add_special_tokens=chat.begins(texts[0]))["input_ids"]
        extra = chat.image_tokens - 1
        counted += [(i, len(ids) + extra * len(samples[i].images)) for i, ids in zip(part, made, strict=True)]
    for i, length in of_all_processes(counted):
        lengths[i] = length
    return lengths


def prompt_faults(chat: Chat, samples: Packed) -> list[str]:
    """Samples, of some evenly chosen ones, whose answers do not go on where their prompts end."""
    faults = []
    for i in range(0, len(samples), max(1, len(samples) // PROBED)):
        try:
            check_prompt(chat, samples[i])
        except ValueError as error:
            faults.append(f"{samples.where(i)}: {error}")
    return faults


# -- batches -----------------------------------------------------------------------------------


class Conversations:
    """Batches of conversations by sampler keys, padded on the right.

    {"input_ids", "attention_mask", "labels" (B, L), -100 but for answers; "pixel_values" (n, 3, S, S) of the n
    images in order, absent where there are none}.  As `train_dataset` of transformers' Trainer, with `collate`.

    cached: instead of pixels, gives {"connector_inputs": what the connector is given} for some images.
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
        self.with_image = torch.tensor([bool(one.images) for one in samples])
        # one byte per sample in memory that the loading processes share with this one
        self.broken = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int) -> dict[str, Any]:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int]) -> dict[str, Any]:
        """A batch; the next whole sample stands in for one with a broken image."""
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
        """A sample and its images, or their paths where what they become is kept."""
        while True:
            one = self.samples[index]
            if self.cached:
                return one, list(one.images)
            images = self.open(index)
            if images is not None:
                return one, images
            index = (index + 1) % len(self)

    def open(self, index: int) -> list[Image.Image] | None:
        """The images of a sample, or None if one is broken: counted, named once, fatal above the limit."""
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
        """One epoch's samples in order: batches of similar length, each with images or without."""
        if not self.group:
            return torch.randperm(len(self), generator=generator)
        return grouped(self.lengths, self.with_image, self.group, generator)


def grouped(lengths: Tensor, with_images: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """A random order (n,) whose batches hold samples of similar length, with images or all without.

    As in LLaVA-1.5: within megabatches of random samples of one kind, sorted by length; then batches in random order.
    What fills no batch of its kind makes mixed ones, and what fills none of these comes last.
    """
    shuffled = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    rest: list[Tensor] = []
    for kind in (True, False):
        same_kind = shuffled[with_images[shuffled] == kind]
        full = len(same_kind) // batch_size * batch_size
        rest.append(same_kind[full:])
        for mega in same_kind[:full].split(MEGABATCH * batch_size):
            batches += mega[lengths[mega].argsort(descending=True, stable=True)].split(batch_size)
    left = torch.cat(rest)
    left = left[torch.randperm(len(left), generator=generator)]
    full = len(left) // batch_size * batch_size
    batches += left[:full].split(batch_size) if full else ()
    turns = torch.randperm(len(batches), generator=generator).tolist()
    return torch.cat([*(batches[i] for i in turns), left[full:]])
