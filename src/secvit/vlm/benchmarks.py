"""The nine benchmarks of tables 7 to 9: their files as questions, and their scores.

A folder is laid out as LLaVA's evaluation has it (`playground/data/eval/NAME`), and prompts are LLaVA-1.5's.  Where
the truth is not public, or its file is not there, a benchmark can be answered, and not scored.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secvit.vlm import scores
from secvit.weights import few

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what is known of the answer.

    id: as in the benchmark's files, where several questions may share one.  image: a file, an encoded picture, or
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
    asked = read_lines(folder / "llava_textvqa_val_v051_ocr.jsonl")
    known = read_json(folder / "TextVQA_0.5.1_val.json", {"data": []})["data"]
    people = {(one["image_id"], one["question"].lower()): one["answers"] for one in known}
    return [
        Question(
            row["question_id"],
            row["text"],
            folder / "train_images" / row["image"],
            people.get((row["question_id"], row["text"].split("\n")[0].lower())),
        )
        for row in asked
    ]


def read_gqa(folder: Path, split: str = "val") -> list[Question]:
    """The balanced test-dev questions; kinds are "binary" and "open", as GQA's own script has them."""
    known = read_json(folder / "data" / "testdev_balanced_questions.json", {})

    def kind(one: Mapping[str, Any]) -> str:
        return "open" if one["types"]["structural"] == "query" else "binary"

    return [
        Question(
            row["question_id"],
            row["text"],
            folder / "data" / "images" / row["image"],
            one and one["answer"],
            kind(one) if one else "",
        )
        for row in read_lines(folder / "llava_gqa_testdev_balanced.jsonl")
        for one in [known.get(row["question_id"])]
    ]


def read_vqav2(folder: Path, split: str = "val") -> list[Question]:
    """split "val": VQA's own questions and annotations; "test": LLaVA's test-dev questions, without truth."""
    if split == "test":
        rows = read_lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl")
        return [Question(row["question_id"], row["text"], folder / "test2015" / row["image"]) for row in rows]
    asked = read_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    known = read_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": []})["annotations"]
    people = {one["question_id"]: one for one in known}
    return [
        Question(
            row["question_id"],
            row["question"] + SHORT,
            folder / "val2014" / f"COCO_val2014_{row['image_id']:012d}.jpg",
            one and [answer["answer"] for answer in one["answers"]],
            one["answer_type"] if one else "",
        )
        for row in asked
        for one in [people.get(row["question_id"])]
    ]


def read_vizwiz(folder: Path, split: str = "val") -> list[Question]:
    """split "val": VizWiz's own val.json; "test": LLaVA's questions of the test set, without truth."""
    if split == "test":
        rows = read_lines(folder / "llava_test.jsonl")
        return [Question(row["question_id"], row["text"], folder / "test" / row["image"]) for row in rows]
    return [
        Question(
            row["image"],
            row["question"] + UNSURE + SHORT,
            folder / "val" / row["image"],
            [answer["answer"] for answer in row["answers"]],
            row.get("answer_type", ""),
        )
        for row in read_json(folder / "val.json")
    ]


def read_scienceqa(folder: Path, split: str = "test") -> list[Question]:
    """LLaVA's conversations of the test set, 2,017 of the 4,241 questions with an image; kind "image" or "text"."""
    return [
        Question(
            row["id"],
            row["conversations"][0]["value"].replace("<image>", "").strip() + LETTER,
            folder / "images" / "test" / row["image"] if "image" in row else None,
            row["conversations"][1]["value"],
            "image" if "image" in row else "text",
        )
        for row in read_json(folder / "llava_test_CQM-A.json")
    ]


def read_pope(folder: Path, split: str = "val") -> list[Question]:
    """LLaVA's 8,910 questions, or all of POPE's own files where LLaVA's is not there.  kinds: the three categories.

    LLaVA's file leaves out 90 random questions, and reads "imange" in those with "an".
    """
    images = folder / "val2014"
    own = {
        path.stem.rpartition("_")[2]: read_lines(path) for path in sorted((folder / "coco").glob("coco_pope_*.json"))
    }
    if not (folder / "llava_pope_test.jsonl").is_file():
        if not own:
            raise ValueError(f"{folder}: has neither llava_pope_test.jsonl nor coco/coco_pope_*.json")
        return [
            Question(f"{kind}/{row['question_id']}", row["text"] + SHORT, images / row["image"], row["label"], kind)
            for kind, rows in own.items()
            for row in rows
        ]
    labels = {
        (kind, row["image"], row["text"].replace("imange", "image")): row["label"]
        for kind, rows in own.items()
        for row in rows
    }
    return [
        Question(row["question_id"], row["text"], images / row["image"], labels.get(key), row["category"])
        for row in read_lines(folder / "llava_pope_test.jsonl")
        for key in [(row["category"], row["image"], row["text"].split("\n")[0].replace("imange", "image"))]
    ]


def read_mme(folder: Path, split: str = "test") -> list[Question]:
    """LLaVA's questions, with the truth of MME's text files; kinds are the fourteen subtasks."""
    root = folder / "MME_Benchmark_release_version"
    labels = {}
    for path in sorted(root.glob("**/*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.count("\t") == 1:
                question, label = line.split("\t")
                labels[path.relative_to(root).parts[0], path.stem, _mme_words(question)] = label.strip().lower()
    return [
        Question(row["question_id"], row["text"], root / row["image"], labels.get(key), row["category"])
        for row in read_lines(folder / "llava_mme.jsonl")
        for key in [(row["category"], Path(row["image"]).stem, _mme_words(row["text"].removesuffix(SHORT)))]
    ]


def _mme_words(question: str) -> str:
    return " ".join(question.replace("Please answer yes or no.", "").split())


def read_mmbench(folder: Path, split: str = "val") -> list[Question]:
    """The rows of mmbench_dev_20230712.tsv (or the only .tsv file there), pictures included; kinds: its categories."""
    rows = mmbench_rows(folder)
    pictures = {row["index"]: row["image"] for row in rows}
    found = []
    for row in rows:
        options = [f"\n{letter}. {row[letter]}" for letter in _options(row)]
        hint = "" if _is_empty(row.get("hint")) else row["hint"] + "\n"
        picture = pictures.get(row["image"], row["image"])  # rotations may name the row that has the picture
        truth = None if _is_empty(row.get("answer")) else row["answer"]
        prompt = hint + row["question"] + "".join(options) + LETTER
        found.append(Question(int(row["index"]), prompt, base64.b64decode(picture), truth, row.get("category") or ""))
    return found


def mmbench_rows(folder: Path) -> list[dict[str, str]]:
    files = sorted(folder.glob("*.tsv"))
    preferred = [file for file in files if file.name == "mmbench_dev_20230712.tsv"] or files
    if len(preferred) != 1:
        names = few([file.name for file in files]) or "none"
        raise ValueError(f"{folder}: expected mmbench_dev_20230712.tsv or one other .tsv file, found {names}")
    csv.field_size_limit(2**31 - 1)  # a picture is one field
    with open(preferred[0], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if lacking := {"index", "question", "A", "B", "image"} - set(rows[0] if rows else ()):
        raise ValueError(f"{preferred[0]}: has no column {few(sorted(lacking))}")
    return rows


def _options(row: Mapping[str, str]) -> list[str]:
    """The letters up to the first one without a text."""
    letters = "ABCD"
    empty = [letter for letter in letters if _is_empty(row.get(letter))]
    return list(letters[: letters.index(empty[0])] if empty else letters)


def _is_empty(text: str | None) -> bool:
    return text is None or text in ("", "NA", "N/A", "null") or text.lower() in ("nan", "none")


def read_mmvet(folder: Path, split: str = "test") -> list[Question]:
    rows = read_lines(folder / "llava-mm-vet.jsonl")
    return [Question(row["question_id"], row["text"], folder / "images" / row["image"]) for row in rows]


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
        first = [f"{question.image} (question {question.id})" for question in lacking]
        raise ValueError(f"{len(lacking)} of {len(questions)} questions of {name} have no image: {few(first)}")
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
        ids = few([str(question.id) for question in unknown])
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


# -- files ---------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON object a line; a ValueError names the file and the line."""
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):  # splitlines would cut at signs inside of strings
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(rows[-1], dict):
            raise ValueError(f"{path}, line {number}: not a JSON object")
    return rows


def read_json(path: Path, missing: Any = None) -> Any:
    """A JSON file; `missing` stands for one that does not exist, if given."""
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
