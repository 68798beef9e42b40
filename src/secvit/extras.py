"""Packages that only a part of secvit needs, and the extra of `pip install "secvit[EXTRA]"` that brings each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Missing(ImportError):
    """A package that this part of secvit needs is not installed, or cannot be imported."""


@contextmanager
def needs(who: str, package: str, extra: str | None = None) -> Iterator[None]:
    """Around imports: an ImportError inside becomes `Missing`, which says who needs the package, and how to install it.

    extra: the extra of secvit that brings the package; None for one that is installed by its own name.
    """
    try:
        yield
    except ImportError as error:
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"  # installed, but it cannot be imported
        install = f'"secvit[{extra}]" (in a clone: pip install ".[{extra}]")' if extra else package
        raise Missing(f"{who} needs {package}{why}; run: pip install {install}") from error
