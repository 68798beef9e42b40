"""What the writers of all formats share: the file and how to compute with it, and exporters kept quiet."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how to compute with it.

    own_precision: the name of the precision that the runtime chooses itself, and how to compute in it, where that is
        not float32.
    """

    runtime: str
    run: Run
    versions: dict[str, str]
    own_precision: tuple[str, Run] | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters print, log and warn of; their errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: Exception) -> str:
    """What went wrong, without the pages that exporters add."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
