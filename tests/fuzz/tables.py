"""CSV and TSV tables of paths and labels."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

from tests.fuzz.case import Case
from tests.fuzz.labelled import Labelled, check, classes, make_image
from tests.fuzz.mutate import ODD, damaged, replaced


def make(rng: random.Random, folder: Path) -> Case:
    names, tabs, split = classes(rng), rng.random() < 0.3, rng.random() < 0.5
    rows: list[dict[str, str]] = []
    (folder / "sub dir").mkdir()
    for number in range(len(names) * rng.randint(2, 3)):
        name = f"{rng.choice(['', 'sub dir/'])}{number:03d}.png"
        (folder / name).write_bytes(make_image(number))
        part = ("train" if number < len(names) else "val") if split else ""
        rows.append({"path": name, "label": names[number % len(names)], "split": part})
    labels = {Path(row["path"]).name: row["label"] for row in rows}
    columns = ["path", "label", *(["split"] if split else [])]
    kind = rng.choice(["as it is", "form", "form", "wrong", "wrong", "wrong", "odd", "bytes", "bytes", "files"])
    path = folder / f"data{'.tsv' if tabs else '.csv'}"
    change, meant, entries, encoding, end, known = kind, "harmless", (), "utf-8", "\n", True
    row = rng.choice(rows)
    line = f"line {rows.index(row) + 2}"
    if kind == "form":
        change = rng.choice(["BOM", "CRLF", "more columns", "other order", "absolute paths", "a link", "upper-case ending",
                             "split words", "quoted", "./ before paths", "semicolons", "sep=", "headings",
                             "empty rows", "backslashes"])  # fmt: skip
        encoding, end = ("utf-8-sig" if change == "BOM" else "utf-8"), ("\r\n" if change == "CRLF" else "\n")
        if change == "more columns":
            columns.insert(rng.randrange(len(columns) + 1), "note")
        elif change == "other order":
            rng.shuffle(columns)
        elif change == "absolute paths":
            row["path"] = str(folder / row["path"])
        elif change == "./ before paths":
            row["path"] = f"./{row['path']}"
        elif change == "backslashes":
            for one in rows:
                one["path"] = one["path"].replace("/", "\\")
        elif change == "upper-case ending":
            path = path.with_suffix(path.suffix.upper())
        elif change == "split words":
            words = {"train": ("Train", "TRAINING", "training"), "val": ("Valid", "VAL", "validation", "dev")}
            train, val = (rng.choice(words[one]) for one in ("train", "val"))
            for one in rows:
                one["split"] = {"train": train, "val": val, "": ""}[one["split"]]
    elif kind == "wrong":
        meant = "wrong"
        change = rng.choice(["no path", "no label", "no such image", "another label", "a column less", "UTF-16",
                             "not UTF-8", "no rows", "header alone", "other columns", "an image is a folder",
                             "an image is /dev/zero", "NUL", "another split word", "label -1"])  # fmt: skip
        if change in ("no path", "no label"):
            row[change.split()[1]], entries = rng.choice(["", "  "]), (line,)
        elif change == "no such image":
            row["path"], entries = "999.png", (line, "999.png")
        elif change == "an image is a folder":
            row["path"], entries = "sub dir", (line, "sub dir")
        elif change == "an image is /dev/zero":
            row["path"], entries = "/dev/zero", (line, "/dev/zero")
        elif change == "another label":
            other = next(one for one in names if one != row["label"])
            rows.append({**row, "label": other})
            entries = (line, Path(row["path"]).name)
        elif change == "a column less":
            columns.remove(rng.choice(["path", "label"]))
        elif change == "other columns":
            columns[0] = "datei"
        elif change in ("UTF-16", "not UTF-8"):
            encoding = "utf-16" if change == "UTF-16" else "latin-1"
            row["label"] = "Fuß"
        elif change == "no rows":
            rows, columns = [], []
        elif change == "header alone":
            rows = []
        elif change == "another split word" and split:
            row["split"], entries = rng.choice(["trian", "", "train val", "2"]), (line,)
        elif change == "label -1":
            row["label"], entries = "-1", (line,)
        elif change != "NUL":
            change, meant = "as it is", "harmless"
    elif kind == "odd":
        value, column = rng.choice(ODD), rng.choice(columns)
        row[column] = value if isinstance(value, str) else str(value)
        change, meant, known = f"odd {column}", "either", False
    text = io.StringIO()
    sign = ";" if change in ("semicolons", "sep=") else "\t" if tabs else ","
    table = csv.DictWriter(text, columns, delimiter=sign, lineterminator=end, extrasaction="ignore", restval="more",
                           quoting=csv.QUOTE_ALL if change == "quoted" else csv.QUOTE_MINIMAL)  # fmt: skip
    if change == "sep=":
        text.write(f"sep=;{end}")
    if columns:
        table.writerow({name: name.title() if change == "headings" else name for name in columns})
    table.writerows(rows)
    if change == "empty rows":
        text.write(f"{sign * (len(columns) - 1)}{end}" * 3)
    data = text.getvalue().encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    if change == "NUL":
        at = data.index(Path(row["path"]).name.encode())
        data = data[:at] + b"\0" + data[at:]
    elif kind == "bytes":
        change, data = damaged(rng, data)
        meant, known = "either", False
    path.write_bytes(data)
    if change == "a link":
        path.rename(folder / "behind")
        path.symlink_to("behind")
    elif kind == "files":
        target = path if rng.random() < 0.5 else folder / row["path"]
        change = replaced(rng, target)
        # a whole file that is no image is found when it is read, and named itself
        meant, change = (
            ("either" if change == "empty" else "wrong"),
            f"{'table' if target == path else 'image'}: {change}",
        )
    ok = (str(path), *((str(folder / row["path"]),) if kind in ("files", "odd", "bytes") or entries else ()))
    return Case(change, meant, ok, Labelled(str(path), labels if known else None), entries)


def run(case: Case) -> str:
    return check(case.data)
