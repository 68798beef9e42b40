"""Image folders: splits in any case, hidden files, links, stray files."""

from __future__ import annotations

import random
from pathlib import Path

from tests.fuzz.case import Case
from tests.fuzz.labelled import Labelled, check, make_image
from tests.fuzz.mutate import damaged, replaced

WORDS = {"train": ("train", "Train", "TRAIN", "training"), "val": ("val", "Val", "valid", "validation", "VALIDATION")}


def make(rng: random.Random, folder: Path) -> Case:
    root = folder / rng.choice(["data", "my data", "Bilder–ü"])
    names = rng.sample(["cat", "dog", "7", "12", "Fuß", "a b", "写真", "train car"], rng.randint(2, 4))
    divided = rng.random() < 0.5
    labels: dict[str, str] = {}
    files: list[Path] = []
    tops = [root / rng.choice(WORDS[split]) for split in ("train", "val")] if divided else [root]
    for top in tops:
        for name in names:
            for _ in range(rng.randint(2, 3)):
                number = len(labels)
                path = top / name / rng.choice(["", "deeper"]) / f"{number:03d}{rng.choice(['.png', '.PNG', '.jpg'])}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(make_image(number))
                labels[path.name] = name
                files.append(path)
    may_lack = False
    chosen, within = rng.choice(files), rng.choice(files).parent
    meant, entries = "harmless", ()
    change = rng.choice([
        "as it is", "a hidden file", "Apple doubles", "a macOS folder", "a linked image", "a linked folder", "text beside",
        "Thumbs.db", "a link in a circle", "an empty class", "a class with text alone", "a class in val alone",
        "an image replaced", "a damaged image", "a class missing in val",
    ])  # fmt: skip
    if change == "a hidden file":
        (within / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (within / ".hidden.png").write_bytes(b"no image")
    elif change == "Apple doubles":
        chosen.with_name(f"._{chosen.name}").write_bytes(b"\0\5\x16\7" + bytes(50))
    elif change == "a macOS folder":
        (root / "__MACOSX" / "cat").mkdir(parents=True)
        (root / "__MACOSX" / "cat" / "._1.png").write_bytes(b"\0\5\x16\7")
    elif change == "Thumbs.db":
        (within / "Thumbs.db").write_bytes(bytes(9))
        (root / "desktop.ini").write_text("[x]")
    elif change == "text beside":
        (root / "README.txt").write_text("about")
        (within / "notes.txt").write_text("about")
    elif change == "a linked image":
        chosen.rename(folder / "behind.png")
        chosen.symlink_to(folder / "behind.png")
    elif change == "a linked folder":
        moved = folder / "elsewhere"
        within.rename(moved)
        within.symlink_to(moved)
    elif change == "a link in a circle":
        (within / "again").symlink_to(tops[0] / names[0])
        meant = "either"
    elif change in ("an empty class", "a class with text alone"):
        (tops[0] / "nothing").mkdir()
        if change != "an empty class":
            (tops[0] / "nothing" / "a.txt").write_text("no image")
        meant = "either"
    elif change == "a class in val alone":
        (tops[-1] / "only here").mkdir()
        (tops[-1] / "only here" / "099.png").write_bytes(make_image(99))
        labels["099.png"] = "only here"
        meant, entries = ("wrong", ("only here",)) if divided else ("either", ())
    elif change == "a class missing in val":
        meant = "either"
        if divided:
            for file in [file for file in files if file.is_relative_to(tops[-1] / names[0])]:
                del labels[file.name]
            (tops[-1] / names[0]).rename(folder / "away")
    elif change == "an image replaced":
        what = replaced(rng, chosen)
        change, meant = f"an image replaced by {what}", "either"
        may_lack = not chosen.is_file()
        if what in ("missing", "a folder"):  # nothing is left that could be told
            del labels[chosen.name]
            may_lack = False
    elif change == "a damaged image":
        change, data = damaged(rng, chosen.read_bytes())
        chosen.write_bytes(data)
        change, meant = f"an image with {change}", "either"
    kept = None if change.startswith("an image with") or "circle" in change else labels
    return Case(change, meant, (str(root),), Labelled(str(root), kept, may_lack), entries)


def run(case: Case) -> str:
    return check(case.data)
