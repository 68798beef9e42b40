"""What the log says of a split: images, objects and classes, and what was left out of them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from secvit.detection.coco import (
    Annotations,
    Categories,
    ImageList,
    renumbered,
    where,
)
from secvit.detection.objects import Objects
from secvit.detection.source import Content, Source
from secvit.fields import Faults, abridged
from secvit.images.files import LeftOut
from secvit.processes import is_first

logger = logging.getLogger(__name__)


class SplitLog:
    """The log's lines about a split."""

    def __init__(self, split: str, source: Source) -> None:
        self.split, self.source = split, source

    def info(self, line: str, *values: Any) -> None:
        if is_first():
            logger.info(line, *values)

    def warning(self, line: str, *values: Any) -> None:
        if is_first():
            logger.warning(f"%s: {line}", self.split, *values)

    def some(self, what: str, content: Content, annotations: Annotations, which: np.ndarray) -> None:
        if which.any():
            example = where(content, annotations.numbers[int(np.argmax(which))])
            share = which.mean()
            self.warning("%d of %d " + what + " (%.1f %%), %s for one", which.sum(), len(which), 100 * share, example)

    def no_area(self, named: list[str], learn: bool) -> None:
        if named and not learn:
            self.warning("%d objects of no area stay in the score, where none can be found: %s", len(named), named[0])

    def counts(
        self, content: Content, categories: Categories, image_list: ImageList, annotations: Annotations, table: Objects,
        broken: Faults, dropped: list[str], learn: bool, single: bool,
    ) -> None:  # fmt: skip
        """Images, objects and classes, and what was left out."""
        self._what_is_there(content, categories, image_list, table)
        self._what_was_left_out(content, image_list, annotations, table, broken, dropped)
        if single:
            self.warning("every object is marked iscrowd, as a brush marks them; they are taken for single objects")
        if again := renumbered(content.annotations) if content.where is None else 0:
            self.warning("%d annotations have no id or one of another; they were numbered anew", again)
        if not learn and table.crowd.all():
            self.warning("no object to be found, so every figure of its score is -1")
        if learn:
            counts = np.bincount(table.labels, minlength=len(categories.names))
            if unused := [name for name, count in zip(categories.names, counts, strict=True) if not count]:
                self.warning("%d of %d classes have no object: %s", len(unused), len(counts), abridged(unused))

    def _what_is_there(self, content: Content, categories: Categories, image_list: ImageList, table: Objects) -> None:
        if self.source.part:
            self.info(
                "%s: no %s; %s is a fixed part of %d of %d images",
                *(self.source.file, "val split" if self.source.of else "splits given", self.split),
                *(len(image_list.names), len(content.images)),
            )
        for line in (*self.source.notes, *content.notes):
            self.warning("%s", line)
        self.info(
            "%s: %s images, %s objects of %d classes, %s of them crowds",
            *(self.split, f"{len(image_list.names):,}", f"{len(table):,}", len(categories.names)),
            f"{int(table.crowd.sum()):,}",
        )
        if image_list.shortened:
            self.info(
                "%s: %d of %d images were found without the leading folders of their file_name, %s for one",
                *(self.split, len(image_list.shortened), len(image_list.names), image_list.shortened[0]),
            )

    def _what_was_left_out(
        self, content: Content, image_list: ImageList, annotations: Annotations, table: Objects, broken: Faults,
        dropped: list[str],
    ) -> None:  # fmt: skip
        images, objects = LeftOut(), LeftOut()
        gone = sum(fault.startswith("image ") for fault in broken)
        images.add("broken", gone)
        for reason, count in content.left_out:
            images.add(reason, count)
        objects.add("without area", len(dropped))
        objects.add("broken", len(broken.messages) - gone)
        objects.add("of images left out", annotations.lost)
        for line in (images.line(self.split, len(image_list.names), "images"),
                     objects.line(self.split, len(table), "objects")):  # fmt: skip
            if line:
                self.warning(line.removeprefix(f"{self.split}: "))
