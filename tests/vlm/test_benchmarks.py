"""The benchmarks' own files: what is asked, which answers fit, what servers are sent, and what is refused."""

import base64
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from secvit.vlm import benchmarks, scores
from secvit.vlm.answers import match, mend
from secvit.vlm.benchmarks import LETTER, Question, load, read_lines
from secvit.vlm.submissions import read_grades, read_submission, write_submission


@pytest.fixture(scope="module")
def samples(shared):
    return shared / "data" / "llava_eval_samples"


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lay_out(folder: Path, questions: Path, images: str) -> Path:
    """A benchmark's folder with LLaVA's questions, and a file wherever there is an image."""
    (folder / questions.name).write_bytes(questions.read_bytes())
    rows = json.loads(questions.read_text()) if questions.suffix == ".json" else read_lines(questions)
    for row in rows:
        if "image" in row:
            (folder / images / row["image"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / images / row["image"]).touch()
    return folder


# benchmark: (LLaVA's questions, its folder of images, LLaVA's answers, split)
LLAVAS = {
    "textvqa": ("textvqa/llava_textvqa_val_v051_ocr.jsonl", "train_images", "textvqa/answers", "val"),
    "gqa": ("gqa/llava_gqa_testdev_balanced.jsonl", "data/images", "gqa/answers/llava_gqa_testdev_balanced", "val"),
    "vizwiz": ("vizwiz/llava_test.jsonl", "test", "vizwiz/answers", "test"),
    "mme": ("MME/llava_mme.jsonl", "MME_Benchmark_release_version", "MME/answers", "test"),
    "mmvet": ("mm-vet/llava-mm-vet.jsonl", "images", "mm-vet/answers", "test"),
}


def read_llavas(samples, folder, name):
    questions, images, answers, split = LLAVAS[name]
    asked = load(name, lay_out(folder, samples / questions, images), split)
    return asked, read_lines(samples / answers / "llava-v1.5-13b.jsonl")


# -- questions and LLaVA's answers to them -------------------------------------------------------


@pytest.mark.parametrize("name", LLAVAS)
def test_llavas_answers_fit_its_questions(samples, tmp_path, name):
    asked, rows = read_llavas(samples, tmp_path, name)
    assert len(asked) == 50 and not benchmarks.has_truth(name, asked)
    assert match(asked, rows) == [row["text"] for row in rows]
    assert [question.prompt for question in asked] == [row["prompt"] for row in rows]


def test_textvqa_finds_the_people_by_image_and_question(samples, tmp_path):
    asked, rows = read_llavas(samples, tmp_path, "textvqa")
    assert len({question.id for question in asked}) == 34  # ids are those of images
    said = match(asked, rows)
    known = [
        {
            "image_id": row["question_id"],
            "question": row["prompt"].split("\n")[0].upper(),
            "answers": [row["text"]] * 10,
        }
        for row in rows
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": known}))
    assert benchmarks.score("textvqa", load("textvqa", tmp_path), said) == {"accuracy": 1.0}


def test_gqa_takes_answers_and_kinds_from_its_own_file(samples, tmp_path):
    _, rows = read_llavas(samples, tmp_path, "gqa")
    known = {
        row["question_id"]: {"answer": row["text"].lower(), "types": {"structural": kind}}
        for row, kind in zip(rows, ["query", "verify"] * 25)
    }
    (tmp_path / "data" / "testdev_balanced_questions.json").write_text(json.dumps(known))
    found = benchmarks.score("gqa", load("gqa", tmp_path), [row["text"] + "." for row in rows[:25]] + ["?"] * 25)
    assert found == {"accuracy": 0.5, "per_kind": {"open": 13 / 25, "binary": 12 / 25}}


def test_vqav2s_own_files_are_read_with_ten_answers(shared, tmp_path):
    coco = shared / "data" / "vl_coco"
    (tmp_path / "val2014").mkdir()
    asked = json.loads((coco / "vqa_val_questions.json").read_text())["questions"]
    for row in asked:
        (tmp_path / "val2014" / f"COCO_val2014_{row['image_id']:012d}.jpg").touch()
    for ours, theirs in (
        ("questions", "v2_OpenEnded_mscoco_val2014_questions"),
        ("annotations", "v2_mscoco_val2014_annotations"),
    ):
        (tmp_path / f"{theirs}.json").write_bytes((coco / f"vqa_val_{ours}.json").read_bytes())
    questions = load("vqav2", tmp_path)
    assert len(questions) == 573 and {len(question.truth) for question in questions} == {10}
    assert questions[0].prompt == asked[0]["question"] + "\nAnswer the question using a single word or phrase."
    found = benchmarks.score("vqav2", questions, ["Yes." if q.kind == "yes/no" else "one" for q in questions])
    # SOURCE.md of vl_coco: the floor by the majority of the type
    assert found["per_kind"]["yes/no"] == pytest.approx(0.5, abs=0.01)
    assert 0.645 <= found["per_kind"]["number"] <= 0.695


def test_vizwiz_of_val_has_truth_and_of_test_none(samples, tmp_path):
    assert not benchmarks.has_truth("vizwiz", read_llavas(samples, tmp_path, "vizwiz")[0])
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "VizWiz_val_00000000.jpg").touch()
    ten = [{"answer": "Pepsi", "answer_confidence": "yes"}] * 10
    row = {
        "image": "VizWiz_val_00000000.jpg",
        "question": "What is this?",
        "answers": ten,
        "answer_type": "other",
        "answerable": 1,
    }
    (tmp_path / "val.json").write_text(json.dumps([row]))
    (asked,) = load("vizwiz", tmp_path, "val")
    theirs = read_lines(samples / "vizwiz" / "llava_test.jsonl")[1]["text"]
    assert asked.prompt == theirs.replace("What is this?", "What is this?") and asked.prompt.startswith(
        "What is this?\n"
    )
    assert benchmarks.score("vizwiz", [asked], ["pepsi"]) == {"accuracy": 1.0, "per_kind": {"other": 1.0}}


def test_scienceqa_asks_for_a_letter_and_knows_it(samples, tmp_path):
    asked = load("scienceqa", lay_out(tmp_path, samples / "scienceqa" / "llava_test_CQM-A.json", "images/test"))
    truth = {row["question_id"]: row for row in read_lines(samples / "oracle" / "scienceqa_13b.jsonl")}
    assert [question.truth for question in asked] == [truth[question.id]["ground_truth"] for question in asked]
    assert [q.image is not None for q in asked] == [truth[question.id]["is_multimodal"] for question in asked]
    assert all(question.prompt.endswith(LETTER) and "<image>" not in question.prompt for question in asked)
    assert benchmarks.score("scienceqa", asked, [question.truth for question in asked])["image_accuracy"] == 1


def test_pope_labels_llavas_questions_by_image_and_text(samples, tmp_path):
    folder = lay_out(tmp_path, samples / "pope" / "llava_pope_test.jsonl", "val2014")
    (folder / "coco").mkdir()
    for path in (samples / "pope").glob("coco_pope_*.json"):
        (folder / "coco" / path.name).write_bytes(path.read_bytes())
    asked = load("pope", folder)
    oracle = {row["question_id"]: row for row in read_lines(samples / "oracle" / "pope_13b.jsonl")}
    assert "imange" in asked[10].prompt
    assert [question.truth for question in asked] == [oracle[question.id]["label"] for question in asked]
    found = benchmarks.score("pope", asked, [oracle[question.id]["answer"] for question in asked])
    assert list(found) == ["mean_f1", "adversarial"] and found["adversarial"]["questions"] == 50


def test_pope_without_llavas_file_asks_all_of_its_own(samples, tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "val2014").mkdir()
    for path in (samples / "pope").glob("coco_pope_*.json"):
        (tmp_path / "coco" / path.name).write_bytes(path.read_bytes())
        for row in read_lines(path):
            (tmp_path / "val2014" / row["image"]).touch()
    asked = load("pope", tmp_path)
    assert len({question.id for question in asked}) == len(asked) == 150
    found = benchmarks.score("pope", asked, ["Yes"] * 150)
    assert {found[kind]["recall"] for kind in ("random", "popular", "adversarial")} == {1.0}
    assert found["random"]["precision"] == 0.5


def test_mme_reads_both_layouts_of_its_labels(samples, tmp_path):
    asked, _ = read_llavas(samples, tmp_path, "mme")
    root, truth = tmp_path / "MME_Benchmark_release_version", {}
    for number, question in enumerate(asked):
        path = Path(question.id)
        folder = root / path.parts[0] / ("questions_answers_YN" if "images" in path.parts else "")
        text = question.prompt.split("\n")[0]
        truth.setdefault(folder / f"{path.stem}.txt", []).append(
            f"{text}  Please answer yes or no.\t{['Yes', 'No'][number % 2]}"
        )
    for path, labels in truth.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(labels) + "\n")
    found = benchmarks.score("mme", load("mme", tmp_path), ["Yes", "No"] * 25)
    assert found["per_subtask"] == {"code_reasoning": 200, "artwork": 200} and found["perception"] == 200
    always_yes = benchmarks.score("mme", load("mme", tmp_path), ["Yes"] * 50)
    assert always_yes["per_subtask"] == {"code_reasoning": 50, "artwork": 50}


# -- MMBench: a table with images inside -------------------------------------------------------


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (200, 10, 10)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def mmbench(samples, tmp_path):
    """A table of LLaVA's fifty questions, and its answers."""
    rows = read_lines(samples / "mmbench" / "answers" / "mmbench_dev_20230712" / "llava-v1.5-13b.jsonl")
    names = [
        "index",
        "question",
        "hint",
        "A",
        "B",
        "C",
        "D",
        "answer",
        "category",
        "image",
        "source",
        "l2-category",
        "comment",
        "split",
    ]
    with open(tmp_path / "mmbench_dev_20230712.tsv", "w", newline="") as file:
        table = csv.DictWriter(file, names, delimiter="\t", restval="nan")
        table.writeheader()
        for number, row in enumerate(rows):
            options = dict(zip(row["option_char"], row["options"]))
            asked = row["prompt"].removesuffix("".join(f"\n{letter}. {text}" for letter, text in options.items()))
            hint, _, question = asked.rpartition("\n")
            encoded = str(rows[0]["question_id"]) if number == 1 else base64.b64encode(png()).decode()
            known = {"index": row["question_id"], "hint": hint or "nan", "question": question, "image": encoded}
            table.writerow({**known, **options, "answer": row["text"], "category": "physics"})
    return tmp_path, rows


def test_mmbench_asks_what_llava_asked(mmbench):
    folder, rows = mmbench
    asked = load("mmbench", folder)
    assert [question.prompt for question in asked] == [row["prompt"] + LETTER for row in rows]
    assert {question.image for question in asked} == {png()}  # the second row names the first one's
    found = benchmarks.score("mmbench", asked, match(asked, rows))
    assert found["single_accuracy"] == 1 and found["questions"] == len({row["question_id"] % 10**6 for row in rows})


def test_mmbenchs_server_gets_its_table_with_our_answers(mmbench):
    pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    folder, rows = mmbench
    asked = load("mmbench", folder)
    said = [row["text"] + "\x00" for row in rows]  # no letter of a sheet
    path = write_submission(folder / "mine.jsonl", "mmbench", asked, said, folder)
    assert path.name == "mine.upload.xlsx"
    assert read_submission(path) == {row["question_id"]: row["text"] for row in rows}


def test_a_folder_with_two_tables_is_refused(tmp_path):
    for name in ("one.tsv", "two.tsv"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="found one.tsv, two.tsv"):
        load("mmbench", tmp_path)


# -- servers and judges --------------------------------------------------------------------------


def test_vizwizs_server_gets_what_llava_sent(samples, tmp_path):
    asked, rows = read_llavas(samples, tmp_path, "vizwiz")
    path = write_submission(tmp_path / "mine.jsonl", "vizwiz", asked, match(asked, rows), tmp_path)
    theirs = samples / "vizwiz" / "answers_upload" / "llava-v1.5-13b.json"
    assert json.loads(path.read_text()) == json.loads(theirs.read_text())
    assert read_submission(path)["VizWiz_test_00000003.jpg"] == "laptop"


def test_mm_vets_judge_gets_its_own_ids(samples, tmp_path):
    asked, rows = read_llavas(samples, tmp_path, "mmvet")
    path = write_submission(tmp_path / "mine.jsonl", "mmvet", asked, match(asked, rows), tmp_path)
    graded = json.loads((samples / "oracle" / "mmvet_13b_grades_3runs.json").read_text())
    assert read_submission(path) == {f"v1_{row['question_id']}": row["text"] for row in rows}
    assert set(read_submission(path)) <= set(graded)


def test_vqas_server_gets_every_question_of_the_whole_test_set(tmp_path):
    write_lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": i} for i in (1, 2, 3)])
    asked = [Question(2, "how many?", tmp_path / "2.jpg")]
    path = write_submission(tmp_path / "mine.jsonl", "vqav2", asked, ["Two."], tmp_path)
    assert json.loads(path.read_text()) == [{"question_id": i, "answer": "2" * (i == 2)} for i in (1, 2, 3)]


def test_where_no_server_asks_nothing_is_written(tmp_path):
    assert write_submission(tmp_path / "mine.jsonl", "pope", [], [], tmp_path) is None
    assert not [*tmp_path.iterdir()]


# -- what does not fit ---------------------------------------------------------------------------

ASKED = [Question(7, "one?", None), Question(7, "two?", None), Question("8", "three?", None)]
GIVEN = [{"question_id": 7, "prompt": p, "text": t} for p, t in (("one?", "a"), ("two?", "b"))] + [
    {"question_id": 8, "text": "c"}
]


def test_questions_of_one_id_are_told_apart_by_their_prompts():
    assert match(ASKED, GIVEN[::-1]) == ["a", "b", "c"]
    assert match([*ASKED, ASKED[0]], GIVEN) == ["a", "b", "c", "a"]


FAULTS = {
    "a missing answer": (GIVEN[1:], r"1 without an answer \(ids 7\)"),
    "two answers": ([*GIVEN, GIVEN[2]], r"1 answered more than once \(ids 8\)"),
    "another question": ([*GIVEN, {"question_id": 9, "text": "d"}], r"1 that the benchmark does not ask \(ids 9\)"),
    "all of that": ([*GIVEN[2:], *GIVEN[2:], {"question_id": "x", "text": ""}], r"2 without .*ids 7, 7.*ids 8.*ids x"),
    "no text": ([{"question_id": 7}], r"mine.jsonl:\n  line 1: no 'text'"),
}


@pytest.mark.parametrize(("rows", "said"), FAULTS.values(), ids=FAULTS)
def test_answers_that_do_not_fit_are_refused_with_their_ids(rows, said):
    with pytest.raises(ValueError, match=said):
        match(ASKED, rows, "mine.jsonl")


def test_a_missing_image_is_named_with_its_question(samples, tmp_path):
    folder = lay_out(tmp_path, samples / "gqa" / "llava_gqa_testdev_balanced.jsonl", "data/images")
    (folder / "data" / "images" / "n161313.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 50 questions of gqa have no image: .*n161313.jpg \(question 201307251\)"
    ):
        load("gqa", folder)


def test_truth_of_another_version_is_refused():
    asked = [replace(ASKED[0], truth="yes"), *ASKED[1:]]
    with pytest.raises(ValueError, match=r"2 of 3 questions of pope have no truth \(ids 7, 8\)"):
        benchmarks.score("pope", asked, ["Yes"] * 3)


def test_a_benchmark_without_truth_is_not_scored():
    with pytest.raises(ValueError, match="mmvet cannot be scored here; the truth: a language model"):
        benchmarks.score("mmvet", ASKED, ["a", "b", "c"])


def test_files_that_are_not_there_or_broken_are_named(tmp_path):
    with pytest.raises(ValueError, match="no benchmark 'popes'; one of textvqa"):
        load("popes", tmp_path)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        load("pope", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"llava_mme.jsonl: cannot be read"):
        load("mme", tmp_path)
    (tmp_path / "llava_mme.jsonl").write_text(
        '{"question_id": 1, "image": "a", "text": "?", "category": "c"}\n{"question'
    )
    with pytest.raises(ValueError, match=r"llava_mme.jsonl:\n  line 2: not JSON .*cut off"):
        load("mme", tmp_path)
    with pytest.raises(ValueError, match="has neither llava_pope_test.jsonl nor"):
        load("pope", tmp_path)


def test_only_a_last_line_that_was_cut_off_is_taken_off(tmp_path):
    path, whole = tmp_path / "mine.jsonl", json.dumps(GIVEN[0]) + "\n"
    for end in ("", '{"question_id": 7, "te', '{"question_id": 7}'):
        path.write_text(whole + end)
        mend(path)
        assert path.read_text() == whole


def test_signs_that_end_lines_elsewhere_are_part_of_an_answer(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"text": "one\u2028two"}\n\n{"text": ""}\n', encoding="utf-8")
    assert [row["text"] for row in read_lines(tmp_path / "mine.jsonl")] == ["one\u2028two", ""]


def test_every_benchmark_of_the_tables_is_there():
    assert [*benchmarks.BENCHMARKS] == [
        "textvqa",
        "gqa",
        "vqav2",
        "vizwiz",
        "scienceqa",
        "pope",
        "mme",
        "mmbench",
        "mmvet",
    ]
    assert scores.mm_vet({"v1_0": [1.0], "v1_1": [0.0]})["total"] == 50


# -- fields of other types -----------------------------------------------------------------------

VIZWIZ = {"image": "a.jpg", "question": "what?", "answers": [{"answer": "cat"}]}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"image": 5}, "entry 1: image is 5, expected the path of a file"),
        ({"question": None}, "entry 1: no 'question'"),
        ({"answers": "cat"}, "entry 1: answers is 'cat', expected a list"),
        ({"answers": []}, "expected a list of answers"),
        ({"answers": [{"answer": ["cat"]}]}, "expected a list of answers"),
    ],
)
def test_a_question_of_another_type_is_named_with_file_and_entry(tmp_path, changed, fault):
    (tmp_path / "val.json").write_text(json.dumps([VIZWIZ, VIZWIZ | changed, 3]))
    with pytest.raises(ValueError, match=r"val\.json:\n") as found:
        load("vizwiz", tmp_path)
    assert fault in str(found.value) and "entry 2: 3, expected an object" in str(found.value)


def test_numbers_as_text_meet_their_questions(tmp_path):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000009.jpg").touch()
    asked = {"questions": [{"question_id": 7, "image_id": "9", "question": "how many?"}]}
    known = {"annotations": [{"question_id": "7", "answers": [{"answer": 2}] * 10, "answer_type": "number"}]}
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text("\ufeff" + json.dumps(asked), encoding="utf-8")
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(known))
    (question,) = load("vqav2", tmp_path)
    assert question.truth == ["2"] * 10 and question.kind == "number"
    assert match([question], [{"question_id": "7", "text": 2}]) == ["2"]
    known["annotations"] += [known["annotations"][0] | {"answer_type": "other"}]
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match="annotations.json: '7' occurs twice"):
        load("vqav2", tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"question_id": 1, "text": "a"}\n{"question_id": 2, "te', "line 2: not JSON .*is the file cut off"),
        (b'{"question_id": 1}\n3\n', "line 2: 3, expected an object"),
        (b"[" * 100_000 + b"\n", "line 1: nested too deeply"),
        (b'{"text": "\xe9"}', "not UTF-8 text"),
    ],
)
def test_answers_that_are_no_lines_of_json_are_named(tmp_path, content, fault):
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)mine\.jsonl.*{fault}"):
        read_lines(tmp_path / "mine.jsonl")


@pytest.mark.parametrize("row", [{"question_id": [7], "text": "a"}, {"question_id": 7, "text": ["a"]},
                                 {"question_id": 7, "prompt": {}, "text": "a"}])  # fmt: skip
def test_an_answer_of_another_type_is_named(row):
    with pytest.raises(ValueError, match=r"mine.jsonl:\n  line 2: "):
        match(ASKED, [GIVEN[0], row], "mine.jsonl")


HEAD = "index\tquestion\tA\tB\timage\n"
TABLES = {
    "short": (HEAD + "1\twhat?\ta\tb\n", "line 2: 4 fields, expected the head's 5"),
    "no base64": (HEAD + "1\twhat?\ta\tb\t?!\n", "row 1: image is not in base64"),
    "no number": (HEAD + "one\twhat?\ta\tb\tAAAA\n", "row 1: index is 'one', expected a number"),
    "a column twice": (HEAD.replace("B", "A\tB") + "1\twhat?\ta\tb\tc\tAAAA\n", "more than one column 'A'"),
}


@pytest.mark.parametrize(("content", "fault"), TABLES.values(), ids=TABLES)
def test_a_table_with_a_broken_row_is_named_with_its_line(tmp_path, content, fault):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(ValueError, match=rf"(?s)a\.tsv.*{fault}"):
        load("mmbench", tmp_path)


def test_a_truth_of_mme_that_is_no_yes_or_no_is_named(tmp_path):
    path = tmp_path / "MME_Benchmark_release_version" / "artwork" / "1.txt"
    path.parent.mkdir(parents=True)
    path.write_text("Is it?\tYes\nIs it not?\n")
    with pytest.raises(ValueError, match=r"1\.txt:\n  line 2: 'Is it not\?', expected a question, a tab"):
        load("mme", tmp_path)


def test_files_for_servers_are_read_back_typed(tmp_path):
    for name, content in (("a.json", [{"question_id": 1, "answer": ["x"]}]), ("b.json", {"v1_0": 2.5}), ("c.json", 3)):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"{name}:"):
            read_submission(tmp_path / name)
    (tmp_path / "d.json").write_text('{"v1_0": ["0.5", NaN]}')
    with pytest.raises(
        ValueError, match=r"question 'v1_0': score is .*expected a list of numbers, each a finite number"
    ):
        read_grades(tmp_path / "d.json")


def test_a_table_for_a_server_that_is_no_table_is_named(tmp_path):
    pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    (tmp_path / "a.xlsx").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"a\.xlsx: no table that openpyxl can read"):
        read_submission(tmp_path / "a.xlsx")
