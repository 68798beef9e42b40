"""The Hugging Face hub: one quick look whether it can be reached, instead of a minute of retries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

SECONDS = 5.0  # to wait for an answer


@contextlib.contextmanager
def hub(name: str, option: str = "") -> Iterator[None]:
    """Around what loads `name`, a folder or a name of the hub: without a network, from the cache or not at all.

    ValueError at once if the hub cannot be reached and the cache lacks something of `name`.
    option: that names it, for the message.
    """
    if Path(name).exists() or not (reason := unreachable()):
        yield
        return
    from huggingface_hub import constants

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except OSError as error:
        where = f"{option} {name}".strip()
        raise ValueError(
            f"{where}: not on this machine, and {constants.ENDPOINT} cannot be reached "
            f"({reason}); give a file or folder that is here, or run it once with a network"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def unreachable() -> str:
    """Why the hub cannot be reached now; "" if it can."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever client the hub's library uses
        return str(error).partition("\n")[0] or type(error).__name__
    return ""
