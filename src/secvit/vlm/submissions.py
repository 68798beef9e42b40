"""Files for the benchmarks' servers and judges, as LLaVA's scripts make them, and such files read back."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from secvit.extras import needs
from secvit.fields import Entry, any_text, integer, numbers, read_bytes, read_json, shown
from secvit.files import write_atomically
from secvit.vlm.benchmarks import Question, mmbench_rows
from secvit.vlm.rows import each, lines, row_id
from secvit.vlm.scores import gqa_answer, normalise


def vqav2(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """For VQA's server: every question of test2015, "" where it is not of test-dev."""
    by_id = {question.id: normalise(answer) for question, answer in zip(questions, answers, strict=True)}
    file = folder / "llava_vqav2_mscoco_test2015.jsonl"
    ids = lines(file, lambda row: row.get("question_id", row_id)) if file.is_file() else list(by_id)
    return [{"question_id": i, "answer": by_id.get(i, "")} for i in ids]


def vizwiz(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """For VizWiz's server."""
    return [
        {"image": question.image.name, "answer": normalise(answer)}
        for question, answer in zip(questions, answers, strict=True)
        if isinstance(question.image, Path)
    ]


def gqa(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """For GQA's own script (testdev_balanced_predictions.json)."""
    pairs = zip(questions, answers, strict=True)
    return [{"questionId": question.id, "prediction": gqa_answer(answer)} for question, answer in pairs]


def mmvet(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> dict[str, str]:
    """For MM-Vet's judge."""
    return {f"v1_{question.id}": answer for question, answer in zip(questions, answers, strict=True)}


def mmbench(questions: Sequence[Question], answers: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """For MMBench's server: the table without images and categories, and the answers."""
    by_id = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    left_out = ("hint", "category", "source", "image", "comment", "l2-category")
    rows = []
    for row in mmbench_rows(folder):
        kept = {name: value for name, value in row.items() if name not in left_out}
        rows.append({**kept, "prediction": by_id[int(row["index"])]})
    return rows


# name of a benchmark -> (ending of the file, what makes its content)
SUBMISSIONS: dict[str, tuple[str, Callable[[Sequence[Question], Sequence[str], Path], Any]]] = {
    "vqav2": (".json", vqav2),
    "vizwiz": (".json", vizwiz),
    "gqa": (".json", gqa),
    "mmvet": (".json", mmvet),
    "mmbench": (".xlsx", mmbench),
}


def write_submission(
    beside: Path, benchmark: str, questions: Sequence[Question], answers: Sequence[str], folder: Path
) -> Path | None:
    """Write `beside` with the ending .upload.json or .upload.xlsx (MMBench); None where no server asks for answers.

    folder: the benchmark's own.
    """
    if benchmark not in SUBMISSIONS:
        return None
    ending, make = SUBMISSIONS[benchmark]
    path, content = beside.with_suffix(f".upload{ending}"), make(questions, answers, folder)
    if ending == ".json":
        write_atomically(path, json.dumps(content, indent=1).encode())
        return path
    openpyxl = _openpyxl()
    book = openpyxl.Workbook()
    book.active.append(list(content[0]))
    for row in content:
        book.active.append([openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE.sub("", str(value)) for value in row.values()])
    file = io.BytesIO()
    book.save(file)
    write_atomically(path, file.getvalue())
    return path


def check_submission(benchmark: str) -> None:
    """An ImportError where the file could not be written: before the answers, not after."""
    if SUBMISSIONS.get(benchmark, [""])[0] == ".xlsx":
        _openpyxl()


def read_submission(path: Path) -> dict[str | int, str]:
    """Answers by id from a file written for a server: MMBench (.xlsx), MM-Vet, VQA v2, VizWiz, GQA (.json)."""
    if path.suffix == ".xlsx":
        return dict(
            each(path, _sheet(path), lambda row: (row.get("index", integer), row.get("prediction", any_text, "")))
        )
    content = read_json(path)
    if isinstance(content, dict):
        rows = ((f"answer {i!r}", {"id": i, "answer": one}) for i, one in content.items())
        return dict(each(path, rows, lambda row: (row.fields["id"], row.get("answer", any_text))))

    def answer(row: Entry) -> tuple[int | str, str]:
        i, column = (
            next((name for name in names if name in row.fields), names[0])
            for names in (("question_id", "questionId", "image"), ("answer", "prediction"))
        )
        return row.get(i, row_id), row.get(column, any_text)

    return dict(each(path, _listed(path, content), answer))


def _listed(path: Path, content: Any) -> list[tuple[str, Any]]:
    if not isinstance(content, list):
        raise ValueError(f"{path}: {shown(content)}, expected a list of answers")
    return [(f"entry {i}", one) for i, one in enumerate(content)]


def _sheet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    openpyxl = _openpyxl()
    try:
        head, *rows = openpyxl.load_workbook(io.BytesIO(read_bytes(path))).active.iter_rows(values_only=True)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, SyntaxError) as error:
        raise ValueError(f"{path}: no table that openpyxl can read ({error}); export it again") from None
    return ((f"row {i}", dict(zip(head, row, strict=True))) for i, row in enumerate(rows, 2))


def read_grades(path: Path) -> dict[str, list[float]]:
    """MM-Vet's grades of each question, one a run: {"v1_0": [0.5, ...]}, or {"v1_0": {"score": [...]}} of its judge."""
    content = Entry(str(path), read_json(path)).fields
    rows = ((f"question {i!r}", one if isinstance(one, dict) else {"score": one}) for i, one in content.items())
    return dict(zip(content, each(path, rows, lambda row: row.get("score", numbers)), strict=True))


def _openpyxl() -> Any:
    with needs("the .xlsx file for MMBench's server", "openpyxl"):
        import openpyxl
    return openpyxl
