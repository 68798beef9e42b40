"""Conversation files as they should not be, and what is true of a reader of them."""

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

from secvit.vlm.data import read_samples

ODD: list[Any] = [
    None, True, False, 0, 5, -1, 2.5, 1e308, float("nan"), float("inf"), 10**400, "", " ", "5", "<image>", "</s>", "\0",
    "\ud800", "a" * 10_000, "../x", "gpt", "human", "Human", [], {}, [[]], [5], ["human"], {"a": 1}, {"value": "x"},
    "<im<image>age>",
]  # fmt: skip


def good(rng: random.Random, pictures: list[str]) -> list[dict[str, Any]]:
    """A few entries as LLaVA writes them."""
    entries = []
    for number in range(rng.randint(1, 4)):
        image = rng.choice([None, *pictures])
        turns = []
        for i in range(rng.randint(1, 3)):
            question = f"{'<image>' * (image is not None and i == 0)}\nwhat is thing {i}?"
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": f"a cat, number {number}"}]
        entries.append({"id": f"{number:04d}", **({"image": image} if image else {}), "conversations": turns})
    return entries


def conversations(rng: random.Random, folder: Path) -> Path:
    """A file of conversations in `folder` with one to three faults; the pictures are those of the folder."""
    pictures = [path.name for path in sorted(folder.glob("*.png"))]
    content: Any = good(rng, pictures)
    for _ in range(rng.randint(1, 3)):
        content = _changed(rng, content)
    data = json.dumps(content, indent=rng.choice([None, 1])).encode()
    if rng.random() < 0.3:
        data = _damaged(rng, data)
    path = folder / "fuzzed.json"
    path.write_bytes(data)
    return path


def _changed(rng: random.Random, content: Any) -> Any:
    """One value, key or element, anywhere, is another, gone, doubled or of another type."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(content)
    if not places or rng.random() < 0.03:
        return deepcopy(rng.choice([*ODD, {"data": content}, [content]]))
    holder, key = rng.choice(places)
    what = rng.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, list):
        holder.insert(key, json.loads(json.dumps(holder[key])))
    elif what == 2 and isinstance(holder, dict):
        holder[rng.choice([str(key).upper(), f"{key}s", "x"])] = holder.pop(key)
    elif what == 3:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"value": holder[key]}
    elif what == 4 and isinstance(holder[key], str):
        holder[key] += rng.choice(["<image>", "</s>", "\ud800", "\0", "\r", "é"])
    else:
        holder[key] = deepcopy(rng.choice(ODD))
    return content


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes cut off, turned or put in; another encoding."""
    at = rng.randrange(len(data)) if data else 0
    return rng.choice([
        lambda: data[:at],
        lambda: data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
        lambda: data[:at] + b"[" * rng.choice([3, 100_000]) + data[at:],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode().encode("utf-16"),
        lambda: data + data,
        lambda: data.replace(b"\n", b"\r\n"),
    ])()  # fmt: skip


def verdict(path: Path) -> str:
    """ "right", "clear" (an error that names the file, or faults that name their entries), or "silent: ..."

    right: each sample says what its entry says, and each entry is a sample or a fault.
    """
    try:
        samples, faults = read_samples(path, str(path.parent))
    except ValueError as error:
        return "clear" if str(path) in str(error) else f"silent: no file in {error}"
    entries = json.loads(path.read_bytes().decode("utf-8-sig"))
    if len(samples) + len(faults) != len(entries):
        return f"silent: {len(samples)} samples and {len(faults)} faults of {len(entries)} entries"
    if nameless := [fault for fault in faults if not fault.startswith("entry ")]:
        return f"silent: no entry in {nameless[0]}"
    for i, one in enumerate(samples):
        entry = entries[samples.numbers[i]]
        turns = [(turn["from"].lower(), str(turn["value"])) for turn in entry["conversations"]]
        turns = turns[turns[0][0] in ("gpt", "assistant") :]
        words = [text.replace("<image>", "").strip() for _, text in turns]
        if [text for pair in one.turns for text in pair] != words:
            return f"silent: {one.turns} is not what {words} says"
        image = entry.get("image") or []
        paths = [image] if isinstance(image, str) else image
        if list(one.images) != [str(path.parent / name) for name in paths]:
            return f"silent: {one.images} are not {paths}"
        if entry.get("id", "") not in (None, "") and str(entry["id"]).strip() not in (one.id, ""):
            return f"silent: {one.id} is not {entry['id']}"
    return "clear" if faults else "right"
