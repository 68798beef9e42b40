"""Tar shards of images and labels."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

from tests.fuzz.case import Case
from tests.fuzz.labelled import Labelled, check, classes, make_image
from tests.fuzz.mutate import ODD, damaged, replaced


def _add(tar: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE, to: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, to
    tar.addfile(info, io.BytesIO(content))


def make(rng: random.Random, folder: Path) -> Case:
    names, count, wordy = classes(rng), rng.randint(6, 9), rng.random() < 0.4
    prefix = rng.choice(["", "./", "some/where/"])
    labels = {f"{i:03d}.png": names[i % len(names)] for i in range(count)}
    known: dict[str, str] | None = dict(labels)
    kind = rng.choice(["form", "form", "wrong", "wrong", "label", "links", "bytes", "bytes", "headers", "files"])
    path, meant, change, entries = folder / "data-000.tar", "harmless", kind, ()
    chosen = rng.choice(list(labels))
    members: list[tuple[str, bytes]] = []
    for name, label in labels.items():
        stem = name.removesuffix(".png")
        said = json.dumps({"label": label}).encode() if wordy else label.encode()
        members += [(name, make_image(int(stem))), (f"{stem}.{'json' if wordy else 'cls'}", said)]
    at = next(i for i, (name, _) in enumerate(members) if name == chosen)
    stem, form = chosen.removesuffix(".png"), tarfile.PAX_FORMAT
    late: list[tuple[str, bytes, bytes, str]] = []
    told = False
    if kind == "form":
        change = rng.choice(["as it is", "shuffled", "GNU", "long names", "folders", "hidden files", "white space",
                             "text beside", "../ names"])  # fmt: skip
        if change == "shuffled":
            rng.shuffle(members)
        elif change == "GNU":
            form = tarfile.GNU_FORMAT
        elif change == "long names":
            prefix = "long/" * 60
        elif change == "../ names":
            prefix = "../../"
        elif change == "folders":
            late = [("some/", b"", tarfile.DIRTYPE, "")]
        elif change == "hidden files":
            members += [(f"._{chosen}", b"\0\5\x16\7"), (".DS_Store", b"Bud1"), (f"._{stem}.cls", b"\0")]
        elif change == "white space" and not wordy:
            members = [(n, c + b" \r\n" if n.endswith(".cls") else c) for n, c in members]
        elif change == "text beside":
            members.append((f"{stem}.txt", b"a caption"))
    elif kind == "wrong":
        meant, entries = "wrong", (stem,)
        change = rng.choice(["no label", "an image twice", "gzip", "empty", "no images", "an image alone",
                             "label not UTF-8", "empty label", "-1"])  # fmt: skip
        if change == "no label" or change == "an image alone":
            del members[at + 1]
        elif change == "an image twice":
            members.append((chosen, make_image(99)))
        elif change == "label not UTF-8":
            members[at + 1] = (members[at + 1][0], b"\xff\xfe\x00")
        elif change == "empty label":
            members[at + 1] = (members[at + 1][0], b"{}" if wordy else b" \n")
        elif change == "-1":
            members[at + 1] = (members[at + 1][0], b'{"label": -1}' if wordy else b"-1")
        elif change == "no images":
            members, entries = [one for one in members if not one[0].endswith(".png")], ()
        else:
            entries = ()
    elif kind == "label":
        value = rng.choice(ODD)
        change, meant, known = f"label of another type: {type(value).__name__}", "either", None
        if isinstance(value, (list, dict, bool, float, type(None))):
            meant, entries = "wrong", (stem,)
        members[at + 1] = (f"{stem}.json", json.dumps({"label": value}).encode())
    elif kind == "links":
        change = rng.choice(["a symbolic link", "a hard link", "a device", "a pipe", "a link to nothing"])
        types = {"a hard link": tarfile.LNKTYPE, "a device": tarfile.CHRTYPE, "a pipe": tarfile.FIFOTYPE}
        meant, to = "either", "nowhere" if change == "a link to nothing" else f"{prefix}{chosen}"
        to = to if change != "a symbolic link" else chosen
        late = [(f"{prefix}099.png", b"", types.get(change, tarfile.SYMTYPE), to), (f"{prefix}099.cls", names[0].encode(),
                tarfile.REGTYPE, "")]  # fmt: skip
        known = {**labels, "099.png": names[0]}  # what it links to, an error, or left out with a word
        told = True
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            _add(tar, prefix + name, content)
        for name, content, type_, to in late:
            _add(tar, name, content, type_, to)
    if change == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif change == "empty":
        path.write_bytes(b"")
    elif kind == "bytes":
        change, data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
        meant, known = "either", None
    elif kind == "headers":
        data, field = (
            bytearray(path.read_bytes()),
            rng.choice([(0, 100), (100, 8), (124, 12), (148, 8), (156, 1), (257, 6)]),
        )
        block = 512 * rng.choice([0, 0, 1, 2, 3])
        data[block + field[0] : block + sum(field)] = rng.choice(
            [rng.randbytes(field[1]), bytes(field[1]), b"7" * field[1]]
        )
        if rng.random() < 0.7:  # a header that is wrong, but whole
            data[block + 148 : block + 156] = b" " * 8
            data[block + 148 : block + 156] = f"{sum(data[block : block + 512]):06o}\0 ".encode()
        path.write_bytes(data)
        change, meant, known = f"a header's bytes {field[0]}..", "either", None
    elif kind == "files":
        change, meant = f"in its place: {replaced(rng, path)}", "wrong"
    where = folder if rng.random() < 0.5 else path
    return Case(change, meant, (str(path), str(folder)), Labelled(f"wds/{where}", known, may_lack=told), entries)


def run(case: Case) -> str:
    return check(case.data)
