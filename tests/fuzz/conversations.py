"""LLaVA's conversations: loaded, and batched as training will see them."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from secvit.vlm.chat import Chat, prepare
from secvit.vlm.config import Samples
from secvit.vlm.data import Conversations, load
from secvit.vlm.small import small_llava, small_tokenizer
from tests.fuzz.case import Case
from tests.fuzz.mutate import ODD, changed, damaged, no_json, replaced, written

WORDS = ("what is thing 1?", "a cat, number 2", "and now? two dogs on a mat")
VALUES = (*ODD, "<image>", "</s>", "<im<image>age>", "gpt", "human", "Human", ["human"], {"value": "x"})
SPEAKERS = ("human", "user", "gpt", "assistant")


class Said(NamedTuple):
    """The content of a file as it is meant, None where that is not known; the images' folder."""

    file: Path
    content: Any


@functools.cache
def chat() -> Chat:
    processor = small_llava(small_tokenizer(WORDS, vocab_size=300), num_tokens=9, image_size=32, patch_size=4)[1]
    return Chat(prepare(processor, "v1", True))


def base(rng: random.Random) -> list[dict[str, Any]]:
    entries = []
    for number in range(rng.randint(1, 4)):
        image, turns = rng.choice([None, "0.png", "1.png", "2.png"]), []
        for i in range(rng.randint(1, 3)):
            question = f"{'<image>' * (image is not None and i == 0)}\nwhat is thing {i}?"
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": f"a cat, number {number}"}]
        entries.append({"id": f"{number:04d}", **({"image": image} if image else {}), "conversations": turns})
    return entries


def harmless(rng: random.Random, content: list[dict[str, Any]]) -> str:
    one = rng.choice(content)
    change = rng.choice(["as it is", "no id", "number as id", "a list of one image", "user and assistant", "more fields",
                         "image null"])  # fmt: skip
    if change == "no id":
        del one["id"]
    elif change == "number as id":
        one["id"] = 5
    elif change == "a list of one image" and "image" in one:
        one["image"] = [one["image"]]
    elif change == "user and assistant":
        for turn in one["conversations"]:
            turn["from"] = {"human": "user", "gpt": "assistant"}[turn["from"]]
    elif change == "more fields":
        one["model"], one["conversations"][0]["weight"] = "x", None
    elif change == "image null" and "image" not in one:
        one["image"] = None
    return change


def wrong(rng: random.Random, content: list[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """What was made wrong, and what an error must name of it."""
    at = rng.randrange(len(content))
    one = content[at]
    turns = one["conversations"]
    turn = rng.choice(turns)
    change = rng.choice(["a turn that is text", "no value", "an image of another type", "an image more", "no such image",
                         "another speaker", "two questions", "an empty answer", "no turns", "an image in an answer",
                         "a value of another type", "an entry of another type"])  # fmt: skip
    if change == "a turn that is text":
        turns[rng.randrange(len(turns))] = rng.choice(["human", "a cat", 5, None, []])
    elif change == "no value":
        del turn[rng.choice(["value", "from"])]
    elif change == "an image of another type":
        one["image"] = rng.choice([{"path": "0.png"}, 5, True, [5], [[]], [None], {"0.png": 1}])
    elif change == "an image more":
        turns[0]["value"] += "<image>"
    elif change == "no such image":
        one["image"] = rng.choice(["9.png", "/dev/zero", "..", "\0"])
        turns[0]["value"] = "<image>\nwhat?"
    elif change == "another speaker":
        turn["from"] = rng.choice(["system", "bot", "", None, [], 1])
    elif change == "two questions":
        turns.insert(0, dict(turns[0]))
    elif change == "an empty answer":
        turns[1]["value"] = rng.choice(["", "  ", "\n"])
    elif change == "no turns":
        one["conversations"] = rng.choice([[], {}, "x", None])
    elif change == "an image in an answer":
        turns[1]["value"] += "<image>"
    elif change == "a value of another type":
        turn["value"] = rng.choice([None, [], {}, ["a"], True])
    else:
        content[at] = rng.choice([None, 5, "x", []])
        return change, (f"entry {at}",)
    return change, (f"sample {one['id']!r}", f"sample {one['id']}", f"entry {at}")


def make(rng: random.Random, folder: Path) -> Case:
    for i in range(3):
        Image.new("RGB", (20 + i, 30), (i, 90, 9)).save(folder / f"{i}.png")
    content, file = base(rng), folder / "train.json"
    meant, entries, names, known, kind = "either", (), (str(file),), None, rng.random()
    if kind < 0.2:
        change, meant, known = harmless(rng, content), "harmless", content
        form, data = written(rng, content)
        change = f"{change}, {form}"
    elif kind < 0.45:
        (change, entries), meant = wrong(rng, content), "wrong"
        data = written(rng, content)[1]
    elif kind < 0.8:
        change, known = changed(rng, content, VALUES)
        data = written(rng, known)[1]
    elif kind < 0.9:
        change, data = no_json(rng, written(rng, content)[1])
        meant = "wrong"
    else:
        change, data = damaged(rng, written(rng, content)[1])
    file.write_bytes(data)
    if 0.45 <= kind < 0.5:
        picture = next((one["image"] for one in content if one.get("image")), None)
        file.write_bytes(written(rng, content)[1])
        target = folder / picture if picture and rng.random() < 0.7 else file
        change, meant, known = f"{target.suffix}: {replaced(rng, target)}", "wrong", None
        names = (str(file), str(target))
    return Case(change, meant, names, Said(file, known), entries)


def run(case: Case) -> str:
    known: Said = case.data
    chosen = Samples(images=str(known.file.parent), max_length=10**6)
    samples, lengths = load(known.file, chosen, chat())
    view = Conversations(samples, chat(), lengths)
    batch = view.__getitems__(list(range(len(view))))
    learned = batch["labels"] != -100
    if not learned.any(1).all() or not (batch["labels"][learned] == batch["input_ids"][learned]).all():
        return "a conversation without learned tokens, or with others"
    if [int(row.sum()) for row in batch["attention_mask"]] != list(lengths):
        return "lengths are not what is batched"
    pictures = sum(len(one.images) for one in samples)
    if pictures != len(batch.get("pixel_values", ())):
        return f"{pictures} images, {len(batch.get('pixel_values', ()))} batched"
    try:
        return _as_meant(known, samples) if known.content is not None else ""
    except (TypeError, KeyError, AttributeError, IndexError):
        return "accepted, though nobody can tell what it says"


def _as_meant(known: Said, samples: Any) -> str:
    if not isinstance(known.content, list) or len(samples) != len(known.content):
        return f"{len(samples)} samples of another number of entries"
    for entry, one in zip(known.content, samples, strict=True):
        turns = [(str(turn["from"]).strip().lower(), str(turn["value"])) for turn in entry["conversations"]]
        if any(who not in SPEAKERS for who, _ in turns):
            return f"speakers {[who for who, _ in turns]}"
        turns = turns[turns[0][0] in SPEAKERS[2:] :]
        words = [text.replace("<image>", "").strip() for _, text in turns]
        if [text.strip() for pair in one.turns for text in pair] != words:
            return f"{one.turns} is not what {words} says"
        image = entry.get("image") or []
        paths = [image] if isinstance(image, str) else list(image)
        if [Path(path).name for path in one.images] != [Path(path).name for path in paths]:
            return f"images {one.images} are not {paths}"
    return ""
