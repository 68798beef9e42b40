"""Small data sets of every layout, made on the spot."""

import io
import tarfile
import zlib

import numpy as np
from PIL import Image


def make_image(seed, size=(20, 16)):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise)


def encoded(seed, size=(8, 8), kind="png"):
    file = io.BytesIO()
    make_image(seed, size).save(file, kind)
    return file.getvalue()


def save(path, **options):
    """An image of its own for each path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(zlib.crc32(str(path).encode()), **options).save(path)
    return path


def folder(root, classes=("cat", "dog"), count=4):
    for c in classes:
        for i in range(count):
            save(root / c / f"{i}.png")
    return root


def pack(path, labels=(0, 1, 2, 0, 1, 2), classes=("a", "b", "c"), size=(8, 8), **changes):
    """An npz of encoded images."""
    raw, offset = b"", [0]
    for i in range(len(labels)):
        raw += encoded(i, size)
        offset.append(len(raw))
    content = {
        "jpeg": np.frombuffer(raw, np.uint8).copy(),
        "offset": np.array(offset),
        "label": np.array(labels),
        "name": np.array([f"{i}.png" for i in range(len(labels))]),
        "classes": np.array(classes),
    }
    content |= changes
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return path


def table(path, rows, header="path,label", images=True):
    """A CSV of rows, with the images that its first column names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    for row in rows if images else ():
        save(path.parent / row.replace("\t", ",").split(",")[0])
    return path


def shard(path, members):
    """A tar of (name, bytes or text)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(labels, start=0, kind="cls"):
    """Members of a shard: an image and its label for each."""
    for i, label in enumerate(labels, start):
        yield f"{i:06d}.png", encoded(i)
        yield f"{i:06d}.{kind}", str(label)
