"""The nine benchmarks of tables 7 to 9: their files as questions, and their scores.

A folder is laid out as LLaVA's evaluation has it (`playground/data/eval/NAME`), and prompts are LLaVA-1.5's.  Where
the truth is not public, or its file is not there, a benchmark can be answered, and not scored.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secvit.fields import Entry, Faults, abridged, any_text, integer, items, mapping, read_json, read_text, shown, text
from secvit.vlm import scores
from secvit.vlm.rows import by_key, each, entries, file_name, key, lines, people, row_id, table, yes_no
from secvit.vlm.rows import read_lines as read_lines  # for those who read answers

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what is known of the answer.

    id: as in the benchmark's files, where several questions may share one.  image: a file, an encoded image, or
    None.  truth: None where it is not known.  kind: the category that scores are given for.
    """

    id: str | int
    prompt: str
    image: Path | bytes | None
    truth: Any = None
    kind: str = ""


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read and scored.

    read: (folder, split) -> questions.  truth: the file with the true answers, or who has them.  rule: of `scores`;
    it takes answers, truths, and what `columns` make of the questions.  max_new_tokens: as LLaVA sets it.
    """

    read: Callable[[Path, str], list[Question]]
    truth: str
    rule: Callable[..., dict[str, Any]] | None = None
    columns: tuple[Callable[[Sequence[Question]], list[Any]], ...] = ()
    max_new_tokens: int = 128


# -- readers -------------------------------------------------------------------------------------


def read_textvqa(folder: Path, split: str = "val") -> list[Question]:
    """LLaVA's questions of the val set, with the words that an OCR system read in each image in the prompt."""
    file = folder / "TextVQA_0.5.1_val.json"
    truths = dict(entries(file, _textvqa_truth, "data", missing_ok=True))  # the last of equals, as LLaVA has it
    questions = lines(folder / "llava_textvqa_val_v051_ocr.jsonl", lambda row: _llavas(row, folder / "train_images"))
    return [replace(one, truth=truths.get((str(one.id), one.prompt.split("\n")[0].lower()))) for one in questions]


def _textvqa_truth(row: Entry) -> tuple[tuple[str, str], list[str]]:
    return (row.get("image_id", key), row.get("question", text).lower()), row.get("answers", people)


def _llavas(row: Entry, images: Path) -> Question:
    """A line of LLaVA's question files."""
    return Question(row.get("question_id", row_id), row.get("text", text), images / row.get("image", file_name))


def read_gqa(folder: Path, split: str = "val") -> list[Question]:
    """The balanced test-dev questions; kinds are "binary" and "open", as GQA's own script has them."""
    file = folder / "data" / "testdev_balanced_questions.json"
    content = Entry(str(file), read_json(file)).fields if file.is_file() else {}
    truths = each(file, ((f"question {shown(i)}", one) for i, one in content.items()), _gqa_truth)
    by_question = dict(zip(content, truths, strict=True))
    questions = lines(folder / "llava_gqa_testdev_balanced.jsonl", lambda row: _llavas(row, folder / "data" / "images"))
    paired = [(one, by_question.get(str(one.id), (None, ""))) for one in questions]
    return [replace(one, truth=truth, kind=kind) for one, (truth, kind) in paired]


def _gqa_truth(row: Entry) -> tuple[str, str]:
    structure = Entry(f"{row.where}, types", row.get("types", mapping)).get("structural", text)
    return row.get("answer", text), "open" if structure == "query" else "binary"


def read_vqav2(folder: Path, split: str = "val") -> list[Question]:
    """split "val": VQA's own questions and annotations; "test": LLaVA's test-dev questions, without truth."""
    if split == "test":
        return lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", lambda row: _llavas(row, folder / "test2015"))
    file = folder / "v2_mscoco_val2014_annotations.json"
    truths = by_key(file, entries(file, _vqav2_truth, "annotations", missing_ok=True))

    def question(row: Entry) -> Question:
        i, image = row.get("question_id", row_id), row.get("image_id", integer)
        truth, kind = truths.get(str(i), (None, ""))
        path = folder / "val2014" / f"COCO_val2014_{image:012d}.jpg"
        return Question(i, row.get("question", text) + SHORT, path, truth, kind)

    return entries(folder / "v2_OpenEnded_mscoco_val2014_questions.json", question, "questions")


def _vqav2_truth(row: Entry) -> tuple[str, tuple[list[str], str]]:
    return row.get("question_id", key), (row.get("answers", people), row.get("answer_type", text))


def read_vizwiz(folder: Path, split: str = "val") -> list[Question]:
    """split "val": VizWiz's own val.json; "test": LLaVA's questions of the test set, without truth."""
    if split == "test":
        return lines(folder / "llava_test.jsonl", lambda row: _llavas(row, folder / "test"))

    def question(row: Entry) -> Question:
        image, prompt = row.get("image", file_name), row.get("question", text) + UNSURE + SHORT
        return Question(
            image, prompt, folder / "val" / image, row.get("answers", people), row.get("answer_type", any_text, "")
        )

    return entries(folder / "val.json", question)


def read_scienceqa(folder: Path, split: str = "test") -> list[Question]:
    """LLaVA's conversations of the test set, 2,017 of the 4,241 questions with an image; kind "image" or "text"."""

    def question(row: Entry) -> Question:
        turns = [Entry(f"{row.where}, turn {i}", turn) for i, turn in enumerate(row.get("conversations", items))]
        if len(turns) < 2:
            raise ValueError(f"{row.where}: {len(turns)} turns, expected a question and its answer")
        asked, answer = (turn.get("value", text) for turn in turns[:2])
        image = row.get("image", file_name, "")
        return Question(
            row.get("id", row_id),
            asked.replace("<image>", "").strip() + LETTER,
            folder / "images" / "test" / image if image else None,
            answer,
            "image" if image else "text",
        )

    return entries(folder / "llava_test_CQM-A.json", question)


def read_pope(folder: Path, split: str = "val") -> list[Question]:
    """LLaVA's 8,910 questions, or all of POPE's own files where LLaVA's is not there.  kinds: the three categories.

    LLaVA's file leaves out 90 random questions, and reads "imange" in those with "an".
    """
    images, llavas = folder / "val2014", folder / "llava_pope_test.jsonl"
    own = [
        replace(one, kind=path.stem.rpartition("_")[2])
        for path in sorted((folder / "coco").glob("coco_pope_*.json"))
        for one in lines(path, lambda row: replace(_llavas(row, images), truth=row.get("label", yes_no)))
    ]
    if not llavas.is_file():
        if not own:
            raise ValueError(f"{folder}: has neither llava_pope_test.jsonl nor coco/coco_pope_*.json")
        return [replace(one, id=f"{one.kind}/{one.id}", prompt=one.prompt + SHORT) for one in own]
    labels = by_key(folder / "coco", ((_pope_key(one), one.truth) for one in own))
    questions = lines(llavas, lambda row: replace(_llavas(row, images), kind=row.get("category", text)))
    return [replace(one, truth=labels.get(_pope_key(one))) for one in questions]


def _pope_key(question: Question) -> tuple[str, Path | bytes | None, str]:
    return question.kind, question.image, question.prompt.split("\n")[0].replace("imange", "image")


def read_mme(folder: Path, split: str = "test") -> list[Question]:
    """LLaVA's questions, with the truth of MME's text files; kinds are the fourteen subtasks."""
    root = folder / "MME_Benchmark_release_version"
    labels = {}
    for path in sorted(root.glob("**/*.txt")):
        faults = Faults(path)
        for number, line in enumerate(read_text(path).splitlines(), 1):
            asked, tab, label = line.strip().partition("\t")
            if tab and label.strip().lower() in ("yes", "no"):
                labels[path.relative_to(root).parts[0], path.stem, _mme_words(asked)] = label.strip().lower()
            elif line.strip():
                faults.add(f"line {number}: {shown(line)}, expected a question, a tab, and Yes or No")
        faults.check()

    def question(row: Entry) -> Question:
        one, kind = _llavas(row, root), row.get("category", text)
        name = Path(row.get("image", file_name)).stem
        return replace(one, truth=labels.get((kind, name, _mme_words(one.prompt.removesuffix(SHORT)))), kind=kind)

    return lines(folder / "llava_mme.jsonl", question)


def _mme_words(question: str) -> str:
    return " ".join(question.replace("Please answer yes or no.", "").split())


def read_mmbench(folder: Path, split: str = "val") -> list[Question]:
    """The rows of mmbench_dev_20230712.tsv (or the only .tsv file there), images included; kinds: its categories."""
    file = mmbench_file(folder)
    rows = mmbench_rows(folder)
    images = {row["index"]: row["image"] for row in rows}

    def question(entry: Entry) -> Question:
        row = entry.fields
        options = [f"\n{letter}. {row[letter]}" for letter in _options(row)]
        hint = "" if _is_empty(row.get("hint")) else row["hint"] + "\n"
        encoded = str(images.get(row["image"], row["image"]))  # rotations may name the row that has the image
        try:
            image = base64.b64decode("".join(encoded.split()), validate=True)
        except ValueError as error:
            raise ValueError(f"{entry.where}: image is not in base64 ({error})") from None
        truth = None if _is_empty(row.get("answer")) else row["answer"]
        prompt = hint + entry.get("question", text) + "".join(options) + LETTER
        return Question(entry.get("index", integer), prompt, image, truth, row.get("category") or "")

    return each(file, ((f"row {number}", row) for number, row in enumerate(rows, 1)), question)


def mmbench_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.tsv"))
    preferred = [file for file in files if file.name == "mmbench_dev_20230712.tsv"] or files
    if len(preferred) != 1:
        names = abridged([file.name for file in files]) or "none"
        raise ValueError(f"{folder}: expected mmbench_dev_20230712.tsv or one other .tsv file, found {names}")
    return preferred[0]


def mmbench_rows(folder: Path) -> list[dict[str, str]]:
    return table(mmbench_file(folder), ("index", "question", "A", "B", "image"), "\t")


def _options(row: Mapping[str, str]) -> list[str]:
    """The letters up to the first one without a text."""
    letters = "ABCD"
    empty = [letter for letter in letters if _is_empty(row.get(letter))]
    return list(letters[: letters.index(empty[0])] if empty else letters)


def _is_empty(text: str | None) -> bool:
    return text is None or text in ("", "NA", "N/A", "null") or text.lower() in ("nan", "none")


def read_mmvet(folder: Path, split: str = "test") -> list[Question]:
    return lines(folder / "llava-mm-vet.jsonl", lambda row: _llavas(row, folder / "images"))


# -- all of them ---------------------------------------------------------------------------------


def _kinds(questions: Sequence[Question]) -> list[str]:
    kinds = [question.kind for question in questions]
    return kinds if any(kinds) else []


def _ids(questions: Sequence[Question]) -> list[Any]:
    return [question.id for question in questions]


def _have_image(questions: Sequence[Question]) -> list[bool]:
    return [question.image is not None for question in questions]


BENCHMARKS: dict[str, Benchmark] = {
    "textvqa": Benchmark(read_textvqa, "TextVQA_0.5.1_val.json", scores.vqa),
    "gqa": Benchmark(read_gqa, "data/testdev_balanced_questions.json", scores.gqa, (_kinds,)),
    "vqav2": Benchmark(
        read_vqav2, "v2_mscoco_val2014_annotations.json; of test-dev, VQA's server", scores.vqa, (_kinds,)
    ),
    "vizwiz": Benchmark(read_vizwiz, "val.json; of the test set, VizWiz's server", scores.vqa, (_kinds,)),
    "scienceqa": Benchmark(read_scienceqa, "llava_test_CQM-A.json", scores.science_qa, (_have_image,), 1024),
    "pope": Benchmark(read_pope, "coco/coco_pope_*.json", scores.pope, (_kinds,)),
    "mme": Benchmark(read_mme, "MME_Benchmark_release_version/*/*.txt", scores.mme, (_kinds, _ids)),
    "mmbench": Benchmark(
        read_mmbench, "the column `answer`; of the test set, MMBench's server", scores.mmbench, (_ids,), 1024
    ),
    "mmvet": Benchmark(read_mmvet, "a language model that grades", max_new_tokens=1024),
}


def load(name: str, folder: str | Path, split: str = "val") -> list[Question]:
    """The questions of a benchmark; a ValueError names the file that is missing or the question whose image is."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; --data is the benchmark's, like playground/data/eval/{name}")
    questions = find(name).read(folder, split)
    lacking = [question for question in questions if isinstance(question.image, Path) and not question.image.is_file()]
    if lacking:
        first = [f"{question.image!s} (question {question.id})" for question in lacking]
        raise ValueError(f"{len(lacking)} of {len(questions)} questions of {name} have no image: {abridged(first)}")
    if not questions:
        raise ValueError(f"{folder}: no questions of {name}")
    return questions


def find(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def has_truth(name: str, questions: Sequence[Question]) -> bool:
    """Whether the answers can be scored here; a ValueError where the truth of some questions only is known."""
    unknown = [question for question in questions if question.truth is None]
    if 0 < len(unknown) < len(questions):
        ids = abridged([str(question.id) for question in unknown])
        raise ValueError(
            f"{len(unknown)} of {len(questions)} questions of {name} have no truth (ids {ids}); is "
            f"{find(name).truth} of another version?"
        )
    return not unknown


def score(name: str, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """The figures of answers, one for each question in their order."""
    benchmark = find(name)
    if benchmark.rule is None or not has_truth(name, questions):
        raise ValueError(f"{name} cannot be scored here; the truth: {benchmark.truth}")
    columns = [column(questions) for column in benchmark.columns]
    return benchmark.rule(answers, [question.truth for question in questions], *columns)
