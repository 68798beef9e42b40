"""A split's images and objects in flat arrays: read-only, so that forked loading processes share their memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")
HUNDREDTHS = 100  # COCO writes coordinates with two decimals: whole numbers of half the size


def frozen(values: Any, dtype: Any = None) -> np.ndarray:
    """An array that cannot be written to; whole numbers in 32 bits where they fit."""
    array = np.ascontiguousarray(values, dtype)
    if array.dtype == np.int64 and (not array.size or np.abs(array).max() < 2**31):
        array = array.astype(np.int32)
    array.flags.writeable = False
    return array


def ends(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of some pieces begins and the last one ends, (n + 1)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(sizes, np.int64))])


def pieces(starts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the elements of some pieces in another order, and their new ends.  starts (n + 1), order (m)."""
    sizes = np.diff(starts)[order].astype(np.int64)
    new = ends(sizes)
    return np.repeat(starts[:-1][order] - new[:-1], sizes) + np.arange(new[-1]), new


class Rows(Sequence[T]):
    """A sequence whose entries are made when asked for."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self.length, self.make = count, make

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i: int | slice) -> T | list[T]:
        if isinstance(i, slice):
            return [self.make(k) for k in range(*i.indices(self.length))]
        return self.make(range(self.length)[i])

    def __iter__(self) -> Iterator[T]:
        return map(self.make, range(self.length))


class ByNumber(Mapping[int, T]):
    """A mapping from 1..n to entries that are made when asked for."""

    def __init__(self, rows: Rows[T]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(range(1, len(self.rows) + 1))

    def __getitem__(self, number: int) -> T:
        if number not in range(1, len(self.rows) + 1):
            raise KeyError(number)
        return self.rows[number - 1]


@dataclass(frozen=True)
class Masks:
    """Segmentations of m objects: polygons, compressed run lengths or none.

    points: coordinates in px times `scale`, x and y in turn; corners (k + 1): where each of k polygons begins in
    them; polygons (m + 1): which of these are whose.  text, runs (m + 1): run lengths, and where each one's begin.
    """

    points: np.ndarray
    scale: int
    corners: np.ndarray
    polygons: np.ndarray
    text: np.ndarray
    runs: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, sizes: Sequence[int], counts: Sequence[int], texts: Sequence[bytes]) -> Masks:
        """points: in px, of polygons of `sizes` numbers each, `counts` of them an object; texts: b"" for none."""
        hundredths = np.round(points * HUNDREDTHS)
        exact = len(points) == 0 or bool(((hundredths / HUNDREDTHS == points) & (np.abs(hundredths) < 2**31)).all())
        return cls(
            frozen(hundredths, np.int32) if exact else frozen(points),
            HUNDREDTHS if exact else 1,
            frozen(ends(sizes)),
            frozen(ends(counts)),
            frozen(np.frombuffer(b"".join(texts), np.uint8)),
            frozen(ends([len(text) for text in texts])),
        )

    def take(self, order: np.ndarray) -> Masks:
        """Some of the objects, in another order."""
        parts, polygons = pieces(self.polygons, order)
        points, corners = pieces(self.corners, parts)
        text, runs = pieces(self.runs, order)
        return Masks(
            frozen(self.points[points]),
            self.scale,
            frozen(corners),
            frozen(polygons),
            frozen(self.text[text]),
            frozen(runs),
        )

    def segmentation(self, i: int, height: int, width: int) -> list[list[float]] | dict[str, Any]:
        """COCO's: a list of polygons, {"size", "counts"} or []."""
        if self.runs[i + 1] > self.runs[i]:
            return {"size": [height, width], "counts": self.text[self.runs[i] : self.runs[i + 1]].tobytes()}
        at = self.corners[self.polygons[i] : self.polygons[i + 1] + 1]
        # a quotient by 100 is the very number that two decimals were read as
        return [(self.points[a:b] / self.scale).tolist() for a, b in itertools.pairwise(at)]


@dataclass(frozen=True)
class Objects:
    """Boxes (m, 4) as x, y, w, h in px, labels (m) from 0 on, crowd (m), areas (m) in px, in order of their images.

    starts (n + 1): where the objects of each of n images begin.  masks: None if there is none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    starts: np.ndarray
    masks: Masks | None

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, image: int) -> slice:
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        arrays = [self.boxes, self.labels, self.crowd, self.areas, self.starts]
        if self.masks is not None:
            m = self.masks
            arrays += [m.points, m.corners, m.polygons, m.text, m.runs]
        return sum(array.nbytes for array in arrays)
