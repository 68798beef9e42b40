"""LLaVA's conversation JSON: read entry by entry, every field typed, kept as bytes that loading processes share."""

from __future__ import annotations

import codecs
import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from secvit.fields import Entry, Wrong, integer, items, once, open_file, shown
from secvit.fields import any_text as words
from secvit.vlm.chat import IMAGE, Sample

SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}
CHUNK = 1 << 22  # bytes of the file that are decoded at a time
PROBED = 200  # samples whose images decide which folder the paths begin in
_SPACE = re.compile(r"[ \t\r\n]*")
_OTHER_NAMES = ("images", "video", "videos")  # of other formats; to pass over them would be to lose the image


# -- samples in memory -------------------------------------------------------------------------


class Packed(Sequence[Sample]):
    """Samples in one buffer of bytes, each made anew when it is asked for.

    Python counts the users of each object in the object, so that a forked process which reads a list of samples
    copies all of it.  A buffer is not written to, and stays shared.

    data: the samples as JSON, one after the other.  starts, ends (n,): where each lies in it.
    numbers (n,): which entry of its file each is.  root: the folder that the images' paths begin in.
    """

    def __init__(
        self, data: bytes | bytearray, starts: np.ndarray, ends: np.ndarray, numbers: np.ndarray, root: Path
    ) -> None:
        self.data, self.starts, self.ends, self.numbers, self.root = data, starts, ends, numbers, root

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, images, places, turns = json.loads(self.data[self.starts[index] : self.ends[index]])
        paths = tuple(str(self.root / path) for path in images)
        return Sample(name, paths, tuple(places), tuple((question, answer) for question, answer in turns))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Sequence[int]) -> Packed:
        """Some of the samples, in the same buffer."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Packed(self.data, self.starts[chosen], self.ends[chosen], self.numbers[chosen], self.root)

    def where(self, index: int) -> str:
        """What errors call a sample."""
        return f"entry {self.numbers[index]}, sample {self[index].id!r}"


# -- files -------------------------------------------------------------------------------------


def read_samples(
    file: str | os.PathLike[str],
    images: str | None = None,
    drop_broken: bool = False,
    mended: list[str] | None = None,
) -> tuple[Packed, list[str]]:
    """The conversations of a file, and what is wrong with those that are left out.

    images: the folder of the images, None to look beside the file.  drop_broken: take samples with small faults as
    LLaVA's loader takes them.  mended: what was taken otherwise than it is written is appended.  Each text names entry
    (counted from 0), id and field.  ValueError if the file is no JSON list.
    """
    file, mended = Path(file), [] if mended is None else mended
    candidates = roots(file, images)
    data, ends, numbers, faults = bytearray(), array("q"), array("q"), []
    for number, entry in enumerate(entries(file)):
        try:
            data += _packed(entry, number, drop_broken, mended)
            ends.append(len(data))
            numbers.append(number)
        except ValueError as error:
            faults.append(str(error))
    if not ends and not faults:
        raise ValueError(f"{file}: expected a list of LLaVA's conversations, found an empty one")
    stops = np.array(ends, dtype=np.int64)
    starts = np.append(0, stops)[:-1]
    samples = Packed(data, starts, stops, np.array(numbers, dtype=np.int64), candidates[0])
    samples.root = _root_of(samples, candidates)
    return samples, faults


def roots(file: Path, images: str | None) -> list[Path]:
    """The folders that the images' paths may begin in, the likeliest first."""
    if images:
        root = Path(images)
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; give the images' folder as --samples.images DIR")
        return [root, root / "images", *([root.parent] if root.name == "images" else [])]
    beside = file.parent / "images"
    return [beside, file.parent] if beside.is_dir() else [file.parent]


def _root_of(samples: Packed, candidates: Sequence[Path]) -> Path:
    """The folder, of some candidates, in which most images lie; the first of equals."""
    if len(candidates) == 1:
        return candidates[0]
    some = samples.take(range(0, len(samples), max(1, len(samples) // PROBED)))

    def existing(root: Path) -> int:
        some.root = root
        return sum(os.path.isfile(path) for one in some for path in one.images)

    return max(candidates, key=existing)


def entries(file: Path) -> Iterator[Any]:
    """The entries of a JSON list one by one, so that memory holds one of them, not the file.

    ValueError with file, entry and line where it is not JSON, not UTF-8 or no list.
    """
    with open_file(file) as source:
        content = _Text(file, source)
        if content.peek() == "{":
            yield from _json_lines(file, content)
            return
        if content.peek() != "[":
            beginning = shown(content.held[content.at : content.at + 20]) if content.peek() else "an empty file"
            raise ValueError(f"{file}: expected a list [...] of LLaVA's conversations, found {beginning}")
        content.at += 1
        number = 0
        while content.peek() != "]" or number:
            yield content.value(f"entry {number}")
            number += 1
            sign = content.peek()
            if sign == "]":
                break
            if sign != ",":
                what = "is cut off" if not sign else f"goes on with {content.held[content.at : content.at + 20]!r}"
                raise ValueError(
                    f"{file}: cannot be read as JSON: after entry {number - 1}, line {content.line()}, the list "
                    f"{what}; write or copy it again"
                )
            content.at += 1
        content.at += 1
        if content.peek():
            raise ValueError(
                f"{file}: cannot be read as JSON: line {content.line()}: text after the list; write it as one list"
            )


def _json_lines(file: Path, content: _Text) -> Iterator[Any]:
    """The objects of JSON Lines, one after the other; a ValueError for one object that has the samples inside."""
    number = 0
    while content.peek():
        entry = content.value(f"entry {number}")
        if number == 0 and not content.peek() and isinstance(entry, dict) and "conversations" not in entry:
            lists = ", ".join(repr(key) for key, value in entry.items() if isinstance(value, list))
            inside = f"; of the lists in it ({lists}), write that of the conversations to a file" if lists else ""
            raise ValueError(f"{file}: expected a list [...] of LLaVA's conversations, found one object{inside}")
        yield entry
        number += 1


class _Text:
    """A file's text, held only from `at` on to as far as it was asked for."""

    def __init__(self, file: Path, source: Any) -> None:
        self.file, self.source = file, source
        self.held, self.at, self.lines_before, self.ended = "", 0, 0, False
        self.utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self.scan = json.JSONDecoder(object_pairs_hook=once).raw_decode

    def line(self, at: int | None = None) -> int:
        """The number of the line at a place of `held`."""
        return self.lines_before + self.held.count("\n", 0, self.at if at is None else at) + 1

    def more(self) -> None:
        """Hold at least twice as much, so that a long entry is scanned a few times only."""
        self.lines_before += self.held.count("\n", 0, self.at)
        self.held, self.at = self.held[self.at :], 0
        place = self.source.tell() - len(self.utf8.getstate()[0])
        try:
            chunk = self.source.read(max(CHUNK, len(self.held)))
            self.ended = not chunk
            self.held += self.utf8.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.file}: not UTF-8 text ({error.reason} at byte {place + error.start}); save it as UTF-8"
            ) from None
        except OSError as error:
            raise ValueError(f"{self.file}: cannot be read ({error.strerror}); copy it again") from None

    def peek(self) -> str:
        """The next sign that is no space; "" at the end."""
        while True:
            self.at = _SPACE.match(self.held, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.held) or self.ended:
                return self.held[self.at : self.at + 1]
            self.more()

    def value(self, where: str) -> Any:
        """The JSON value that is next."""
        self.peek()
        while True:
            try:
                value, end = self.scan(self.held, self.at)
                if end < len(self.held) or self.ended:  # else a number may go on
                    self.at = end
                    return value
            except RecursionError:
                raise ValueError(f"{self.file}: {where}: nested too deeply to be read; write it anew") from None
            except json.JSONDecodeError as error:
                inside = error.pos < len(self.held) - 16 and not error.msg.startswith("Unterminated")
                if inside or self.ended:
                    place = f"line {self.line(error.pos)}"
                    raise ValueError(
                        f"{self.file}: cannot be read as JSON: {where}, {place}: {error.msg}; write or copy it again"
                    ) from None
            except ValueError as error:  # a key twice, a number of thousands of digits
                raise ValueError(f"{self.file}: {where}: not readable JSON ({str(error)[:200]})") from None
            self.more()


# -- one entry ---------------------------------------------------------------------------------


def sample(value: Any, number: int | str, root: Path) -> Sample:
    """One entry of the JSON: {"id", "image": path or list of them, "conversations": [{"from", "value"}, ...]}.

    Each image is named by one <image> in a question, and stands before that question's words, as LLaVA-1.5 puts
    it.  An answer before the first question is left out, as there.
    """
    data = _packed(value, number, False, [])
    return Packed(data, np.array([0]), np.array([len(data)]), np.array([0]), root)[0]


def _packed(value: Any, number: int | str, drop_broken: bool, mended: list[str]) -> bytes:
    """An entry as JSON of (id, paths, places, turns), checked."""
    where = f"entry {number}"
    name = Entry(where, value).get("id", _name, "")
    where += f", sample {name!r}" if name else ""
    entry, notes = Entry(where, value), list[str]()
    images = entry.get("image", _paths, [])
    for key in _OTHER_NAMES:
        if value.get(key) and not (images and value[key] in (images, *images)):
            beside = f" beside {value['image']!r} in 'image'" if images else ""
            raise ValueError(
                f"{where}: has {key!r}{beside}; LLaVA's name for images is 'image', and videos cannot be read"
            )
    spoken = []
    for i, turn in enumerate(entry.get("conversations", items)):
        part = Entry(f"{where}, turn {i}", turn)
        spoken.append((part.get("from", _speaker), part.get("value", words)))
    try:
        places, turns = _turns(spoken, len(images), drop_broken, notes)
        made = json.dumps((name or str(number), images, places, turns), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        fault = f"has {error.object[error.start]!a}, half of a sign and no Unicode text; write the file anew"
        raise ValueError(f"{where}: {fault}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    mended += [f"{where}: {note}" for note in notes]
    return made


def _turns(
    spoken: list[tuple[int, str]], images: int, drop_broken: bool, notes: list[str]
) -> tuple[list[int], list[tuple[str, str]]]:
    """(speaker, text) -> the turn of each image, and (question, answer) pairs.

    drop_broken: what LLaVA's loader takes is taken and noted, where it can be learned from; else it is an error.
    """

    def mend(fault: str, done: str) -> None:
        if not drop_broken:
            raise ValueError(fault)
        notes.append(f"{fault.split(';')[0]}: {done}")

    if spoken and spoken[0][0] == 1:
        spoken = spoken[1:]
        notes.append("begins with an answer, which is left out as LLaVA does")
    _check_order([who for who, _ in spoken])
    if len(spoken) % 2:
        mend("ends with a question; expected human and gpt in turns, gpt last", "cut off")
        spoken = spoken[:-1]
    answers = _mended_answers([text for _, text in spoken[1::2]], mend)
    questions = [text for _, text in spoken[::2]][: len(answers)]
    named = _images_named(questions, images, mend)
    turns = []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        question, answer = question.replace(IMAGE, "").strip(), answer.strip()
        if IMAGE in question or IMAGE in answer:
            raise ValueError(f"{IMAGE} is left in turn {i + 1} once {IMAGE} is taken out; write it out in another way")
        if not question and not named[i]:
            raise ValueError(f"question {i + 1} is empty, and has no image")
        turns.append((question, answer))
    return [i for i, count in enumerate(named) for _ in range(count)], turns


def _check_order(order: Sequence[int]) -> None:
    """A ValueError if 0 (human) and 1 (gpt) do not take turns."""
    if list(order) != [i % 2 for i in range(len(order))] or len(order) < 2:
        speakers = ", ".join("human" if who == 0 else "gpt" for who in order[:12]) or "none"
        raise ValueError(f"expected human and gpt in turns, gpt last, found {speakers}{', ...' * (len(order) > 12)}")


def _mended_answers(answers: list[str], mend: Callable[[str, str], None]) -> list[str]:
    """Without marks of images, and up to the first that is empty."""
    for i, text in enumerate(answers):
        if IMAGE in text:
            mend(f"{IMAGE} in answer {i + 1}; images belong to questions", "taken out")
            answers[i] = text.replace(IMAGE, "")
    empty = next((i for i, text in enumerate(answers) if not text.strip()), None)
    if empty == 0:
        raise ValueError("answer 1 is empty")
    if empty is not None:
        mend(f"answer {empty + 1} is empty", "the conversation is cut off before its question")
    return answers[:empty]


def _images_named(questions: Sequence[str], images: int, mend: Callable[[str, str], None]) -> list[int]:
    """How many of the images each question shows; images: their number."""
    named = [text.count(IMAGE) for text in questions]
    if sum(named) == images:
        return named
    fault = f"{sum(named)} {IMAGE} in the questions for {'one image' if images == 1 else f'{images} images'}"
    with_image = [i for i, count in enumerate(named) if count]
    if images == 0:
        mend(fault, "taken out")
        return [0] * len(named)
    if images == 1 and len(with_image) == 1:
        mend(f"{fault}; write one for each", "taken as one")
        named[with_image[0]] = 1
        return named
    raise ValueError(f"{fault}; write one for each")


def texts(samples: Iterable[Sample]) -> Iterator[str]:
    """All that is said, for a tokenizer to learn from."""
    return (text for one in samples for turn in one.turns for text in turn)


# -- fields ------------------------------------------------------------------------------------


def _name(value: Any) -> str:
    """An id as it is written; "" for none."""
    if isinstance(value, str):
        return value.strip()
    try:
        return str(integer(value))
    except Wrong:
        raise Wrong("text or a whole number") from None


def _speaker(value: Any) -> int:
    speaker = SPEAKERS.get(value.strip().casefold()) if isinstance(value, str) else None
    if speaker is None:
        raise Wrong("human or gpt")
    return speaker


def _paths(value: Any) -> list[str]:
    """The path of an image, or a list of them; "" for none."""
    paths = [value] if isinstance(value, str) and value.strip() else [] if value == "" else value
    good = isinstance(paths, list) and all(isinstance(path, str) and path.strip() for path in paths)
    if not good or any("\0" in path for path in paths):
        raise Wrong("the path of an image, or a list of them")
    return paths
