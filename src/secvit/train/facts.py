"""What a run remembers of its data, so that it goes on with the same data or not at all."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secvit.fields import abridged


def data_facts(samples: int, classes: Sequence[str] = (), names: Iterable[str] = ()) -> dict[str, Any]:
    """Count, classes in order, and a hash of the samples' names; "" without names.

    Of a path the last two parts count, CLASS/FILE, so that data may move.
    """
    digest, some = hashlib.sha256(), iter(names)
    named = 0
    while chunk := list(itertools.islice(some, 65536)):
        named += len(chunk)
        ends = ("/".join(name.replace("\\", "/").rsplit("/", 2)[-2:]) for name in chunk)
        digest.update("".join(f"{end}\0" for end in ends).encode(errors="surrogateescape"))
    return {"samples": samples, "classes": list(classes), "names": digest.hexdigest() if named else ""}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between the facts of a checkpoint and those of the data now; "" if nothing does."""
    before, now = old["classes"], new["classes"]
    if before and now and before != now:
        if sorted(before) == sorted(now):
            orders = f"{abridged(before, 5, repr)}; now {abridged(now, 5, repr)}"
            return f"the same {len(now)} classes in another order ({orders})"
        gone, come = [c for c in before if c not in set(now)], [c for c in now if c not in set(before)]
        return (
            f"other classes ({len(before)}, now {len(now)}"
            + (f"; gone: {abridged(gone, 5, repr)}" if gone else "")
            + (f"; new: {abridged(come, 5, repr)}" if come else "")
            + ")"
        )
    if old["samples"] != new["samples"]:
        return f"{old['samples']:,} training samples, now {new['samples']:,}"
    if old["names"] and new["names"] and old["names"] != new["names"]:
        return f"as many training samples ({new['samples']:,}), but with other names, labels or order"
    return ""
