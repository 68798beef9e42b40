"""Scorers: the published figures of LLaVA-1.5-13B from its own answers, VQA's rules, and what counts as what."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secvit.vlm import scores
from secvit.vlm.submissions import read_grades


@pytest.fixture(scope="module")
def oracle(shared):
    return shared / "data" / "llava_eval_samples" / "oracle"


@pytest.fixture(scope="module")
def expected(oracle):
    return json.loads((oracle / "EXPECTED.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pope_of_llavas_8910_answers_is_the_published_one(oracle, expected):
    rows = lines(oracle / "pope_13b.jsonl")
    found = scores.pope(*([row[key] for row in rows] for key in ("answer", "label", "category")))
    known = expected["pope_13b"]
    names = {
        "f1": "f1",
        "accuracy": "acc",
        "precision": "precision",
        "recall": "recall",
        "yes_ratio": "yes_ratio",
        "questions": "n",
    }
    for category in ("random", "popular", "adversarial"):
        # four digits are given
        assert {theirs: found[category][ours] for ours, theirs in names.items()} == pytest.approx(
            known[category], abs=5e-5
        )
    assert 100 * found["mean_f1"] == pytest.approx(known["mean_f1_x100"], abs=5e-3)
    assert 100 * found["mean_f1"] == pytest.approx(known["LLaVA_MODEL_ZOO_13b"], abs=0.06)  # they cut, not round


def test_scienceqa_of_llavas_4241_answers_is_the_published_one(oracle, expected):
    rows = lines(oracle / "scienceqa_13b.jsonl")
    assert [scores.letter(row["pred"]) or "FAILED" for row in rows] == [row["parsed_ans"] for row in rows]
    found = scores.science_qa(*([row[key] for row in rows] for key in ("pred", "ground_truth", "is_multimodal")))
    known = expected["scienceqa_13b"]
    assert 100 * found["accuracy"] == pytest.approx(known["acc"], abs=1e-9)
    assert 100 * found["image_accuracy"] == pytest.approx(known["img_acc"], abs=1e-9)
    assert (found["correct"], found["questions"], found["unreadable"]) == (known["correct"], known["count"], 5)


def test_mm_vet_of_the_judges_grades_is_the_published_one(oracle, expected):
    found = scores.mm_vet(read_grades(oracle / "mmvet_13b_grades_3runs.json"))
    assert found["runs"] == pytest.approx(expected["mmvet_13b"]["total_per_run"], abs=5e-3)  # two digits are given
    assert found["total"] == pytest.approx(expected["mmvet_13b"]["csv_total"], abs=0.05)
    assert found["questions"] == 218


def test_llava_bench_of_the_judges_marks_is_the_published_one(oracle, expected):
    known, totals = expected["llava_w_13b"], []
    for review in (1, 2, 3):
        rows = lines(oracle / f"llava_w_13b_review{review}.jsonl")
        found = scores.llava_bench([row["tuple"] for row in rows], [row["category"] for row in rows])
        totals.append(found["relative"])
        if review == 1:
            assert found["per_kind"] == pytest.approx(known["by_category_review1"], abs=0.051)  # one digit is given
    assert totals == pytest.approx(known["relative_score_per_review"], abs=0.051)


# -- short answers -------------------------------------------------------------------------------

CASES = {
    "Dakota Digital.": "dakota digital",
    "The Two dogs": "2 dogs",
    "none": "0",
    "dont": "don't",
    "wouldntve": "wouldntve",
    "wouldnt've": "wouldn't've",
    "3,000": "3000",
    "1.5 m.": "1.5 m",
    "left-hand": "left hand",
    "left- hand": "left hand",
    "yes/no": "yes no",
    "a yes/ no": "yes no",
    "bob's": "bob 's",
    "what?!": "what",
    " red\nand\tblue ": "red and blue",
    "": "",
}


@pytest.mark.parametrize(("said", "meant"), CASES.items())
def test_answers_are_normalised_as_vqa_does(said, meant):
    assert scores.normalise(said) == meant


words = st.sampled_from(
    ["a", "the", "none", "ten", "Two", "dont", "couldntve", "'ows'at", "somebody'd", "3.5", ".", "e.g.", "x-ray", "R&B"]
)


@given(
    st.one_of(st.text(max_size=30), st.lists(words, max_size=5).map(" ".join), st.text("ab '-,.?/_\n19", max_size=20))
)
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore:.*count.*:DeprecationWarning")  # re.sub in lmms_eval, from Python 3.13 on
def test_normalising_is_lmms_evals(text):
    reference = pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric", exc_type=ImportError)
    assert scores.normalise(text) == reference.EvalAIAnswerProcessor()(text)


def test_vqa_counts_the_others_who_said_it():
    people = ["dog"] * 2 + ["Dogs."] * 3 + ["cat"] * 5
    # by hand: of ten ways to leave one out, two leave 1 of 2 who said dog, eight leave 2
    assert scores.soft_accuracy("a dog", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert scores.soft_accuracy("dogs", people) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert scores.soft_accuracy("CAT", people) == 1 and scores.soft_accuracy("cow", people) == 0
    found = scores.vqa(["cat", "cow", "dog"], [people] * 3, ["other", "other", "number"])
    assert found["per_kind"] == {"other": 0.5, "number": pytest.approx(0.6)}
    assert found["accuracy"] == pytest.approx(1.6 / 3)


def test_gqa_is_exact_but_for_case_and_full_stop():
    assert scores.gqa(["Yes.", "a man", "left "], ["yes", "man", "left"], ["binary", "open", "open"]) == {
        "accuracy": pytest.approx(1 / 3),
        "per_kind": {"binary": 1.0, "open": 0.0},
    }


# -- yes or no -----------------------------------------------------------------------------------


def test_pope_hears_no_in_the_first_sentence_only():
    said = ["No", "no, there is none", "There is not. Yes", "Yes. No", "None", "NO", "maybe"]
    found = scores.pope(said, ["no"] * 7)
    assert found["yes_ratio"] == pytest.approx(4 / 7) and found["accuracy"] == pytest.approx(3 / 7)
    assert found["f1"] == found["precision"] == found["recall"] == 0


def test_pope_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    said, truth = ["Yes", "No", "Yes", "No", "Yes"], ["yes", "yes", "no", "no", "yes"]
    found = scores.pope(said, truth)
    lower = [one.lower() for one in said]
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, lower, pos_label="yes"))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, lower))


def test_mme_adds_the_share_of_right_answers_and_of_right_pairs():
    images = ["a", "a", "b", "b", "c", "c"]
    kinds = ["count"] * 4 + ["code_reasoning"] * 2
    found = scores.mme(
        ["Yes", "No.", "yes, it is", "It is", "No", "No"], ["yes", "no", "yes", "no", "yes", "no"], kinds, images
    )
    assert found["per_subtask"] == {"count": pytest.approx(75 + 50), "code_reasoning": pytest.approx(50)}
    assert (found["perception"], found["cognition"]) == (pytest.approx(125), pytest.approx(50))
    perfect = [kind for group in scores.SUBTASKS.values() for kind in group for _ in range(2)]
    whole = scores.mme(["Yes"] * 28, ["Yes"] * 28, perfect, perfect)
    assert (whole["perception"], whole["cognition"]) == (2000, 800)


def test_mme_without_the_second_question_of_an_image_is_refused():
    with pytest.raises(ValueError, match="two questions of each image; count has 1 of b"):
        scores.mme(["Yes"] * 3, ["yes"] * 3, ["count"] * 3, ["a", "a", "b"])


# -- letters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("B", "B"),
        (" B ", "B"),
        ("B. 12 m", "B"),
        ("The answer is C.", "C"),
        ("B is it", None),
        ("b", None),
        ("F", None),
        ("", None),
    ],
)
def test_a_letter_is_read_as_llava_does(said, chosen):
    assert scores.letter(said) == chosen


def test_mmbench_wants_every_rotation_right():
    numbers = [7, 1_000_007, 8, 1_000_008]
    found = scores.mmbench(["A", "B", "A", "It is D"], ["A", "B", "A", "D"], numbers)
    assert found == {"accuracy": 0.5, "single_accuracy": 0.75, "questions": 2, "unreadable": 1}


def test_of_nothing_there_is_no_score():
    assert math.isnan(scores.gqa([], [])["accuracy"])
    with pytest.raises(ValueError, match="longer"):
        scores.gqa(["yes"], ["yes", "no"])
