"""Names of many images in one buffer, which loading processes share instead of copying."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

CHUNK = 100_000  # names that are taken out at a time


class Names(Sequence[str]):
    """A sequence of str, kept as UTF-8 bytes one after another and the place where each ends.

    A Python string in a tuple takes some 60 bytes more, and each process that looks at one gets a copy of its page.

    text (bytes of all,) uint8, ends (n + 1,) int64, of which the first is 0.
    """

    def __init__(self, text: Tensor, ends: Tensor) -> None:
        self.text, self.ends = text, ends
        # the same memory, which is faster to look at
        self._bytes, self._ends = memoryview(text.numpy().data), ends.numpy()

    def __reduce__(self) -> tuple[type[Names], tuple[Tensor, Tensor]]:
        return Names, (self.text, self.ends)  # as tensors: torch moves them to other processes in shared memory

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        if isinstance(names, Names):
            return names
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogatepass")  # names that are not UTF-8 on the disk come as surrogates
            ends.append(len(text))
        kept = torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
        return cls(kept, torch.frombuffer(ends, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        place = range(len(self))[index]  # IndexError where there is none
        return _decoded(self._bytes[self._ends[place] : self._ends[place + 1]])

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), CHUNK):
            ends = self._ends[first : first + CHUNK + 1].tolist()
            for start, end in itertools.pairwise(ends):
                yield _decoded(self._bytes[start:end])

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same names."""
        if isinstance(other, Names):
            return torch.equal(self.ends, other.ends) and torch.equal(self.text, other.text)
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) if len(self) else ""
        return f"Names({len(self):,}: {shown}{', ...' if len(self) > 3 else ''})"

    def select(self, indices: Sequence[int]) -> Names:
        """Those of some indices, in their order."""
        chosen = np.asarray(indices, np.int64)
        all_ends, text = self.ends.numpy(), self.text.numpy()
        lengths = all_ends[chosen + 1] - all_ends[chosen]
        ends = np.concatenate([[0], lengths.cumsum()])
        kept = np.empty(int(ends[-1]), np.uint8)
        for first in range(0, len(chosen), CHUNK):  # by parts, as the place of each byte takes eight
            part = slice(first, first + CHUNK)
            shift = np.repeat(all_ends[chosen[part]] - ends[:-1][part], lengths[part])
            start, end = int(ends[first]), int(ends[min(first + CHUNK, len(chosen))])
            kept[start:end] = text[np.arange(start, end) + shift]
        return Names(torch.from_numpy(kept), torch.from_numpy(ends))


def _decoded(name: memoryview) -> str:
    return str(name, "utf-8", "surrogatepass")
