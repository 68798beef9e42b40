"""The page's temporary folder: it goes when the page stops, or when the next one starts; its pictures go earlier."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: a killed page's folder stays
    fcntl = None  # type: ignore[assignment]

PREFIX = "secvit_app_"
LOCK = "in_use"  # locked as long as the process lives, however it ends
KEPT_MINUTES = 60  # since a file's last use
KEPT_FILES = 1000
KEPT_MB = 200
EMPTY_SECONDS = 60.0  # an empty folder may be about to be filled


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder for one page.  First, folders of pages that were killed are removed."""
    gone = remove_leftovers()
    if gone:
        print(f"secvit app: removed {gone} temporary folder(s) of pages that were killed", flush=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with open(folder / "starting", "wb") as lock:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.rename(lock.name, folder / LOCK)  # locked from the first moment that others can see it
            yield folder


def remove_leftovers() -> int:
    """Remove this user's page folders whose process is gone, and count them."""
    gone = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # BlockingIOError: its process lives
            about = folder.lstat()
            if fcntl is None or not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            with open(folder / LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                gone += 1
    return gone


def sweep(
    folder: Path,
    keep: Collection[str] = (),
    max_mb: float = KEPT_MB,
    max_files: int = KEPT_FILES,
    minutes: float = KEPT_MINUTES,
) -> None:
    """Remove files not used for so long, then those not used for longest, until the rest fits; then empty folders.

    keep: paths of files that stay, and do not count.
    """
    now = time.time()
    files, folders = [], []
    for here, inside, names in os.walk(folder):
        folders += [os.path.join(here, name) for name in inside]
        for path in (os.path.join(here, name) for name in names):
            with suppress(OSError):  # gone meanwhile
                if path not in keep:
                    about = os.stat(path)
                    files.append((about.st_mtime, about.st_size, path))
    files.sort(reverse=True)
    size = 0
    for count, (used, bytes_, path) in enumerate(files, 1):
        size += bytes_
        if size > max_mb * 1024**2 or count > max_files or now - used > 60 * minutes:
            with suppress(OSError):
                os.remove(path)
    for path in reversed(folders):
        with suppress(OSError):  # not empty
            if now - os.stat(path).st_mtime > EMPTY_SECONDS:
                os.rmdir(path)


def use(photo: str) -> None:
    """Keep a photo from now on for as long as a new one; a ValueError where it is gone."""
    try:
        os.utime(photo)
    except FileNotFoundError:
        raise ValueError(
            f"{Path(photo).name}: no longer here; photos are kept for {KEPT_MINUTES} minutes after their last use, "
            "and less where there are many; give the photo again"
        ) from None
