"""Scores of tables 7 to 9: answers and labels in, figures out.  Shares in 0..1 unless a benchmark has its own scale.

Answers are what a model said, as it said it.  Each function documents whose rules it follows; all of them take the
answers and the truth in the same order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

# -- short answers against ten people's: TextVQA, VQA v2, VizWiz ---------------------------------

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_NUMBERS = dict(zip(("none", "zero", "one", "two", "three", "four", "five", "six"), "00123456"))
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'


def _misspelt() -> dict[str, str]:
    """Each contraction without one of its apostrophes, in the only ways that VQA's rules mend."""
    mended = {"somebody'd": "somebodyd"}  # as the rules have it
    for word in _CONTRACTIONS.split():
        places = [i for i, sign in enumerate(word) if sign == "'"]
        for place in places:
            mended[word[:place] + word[place + 1 :]] = word
    return mended


_MENDED = _misspelt()


def normalise(answer: str) -> str:
    """An answer as VQA compares it: lower case, no articles, no punctuation, numbers as digits, apostrophes in place.

    The rules are those of the VQA challenge's server as LLaVA applies them before it compares or submits, oddities
    kept: a sign becomes a space, unless it stands beside a space anywhere in the answer, where it goes without one.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    cleaned = text
    for sign in _SIGNS:
        beside_space = sign + " " in text or " " + sign in text
        cleaned = cleaned.replace(sign, "" if beside_space else " ")
    words = re.sub(r"\.(?!\d)", "", cleaned).split()
    words = [_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the")]
    return " ".join(_MENDED.get(word, word) for word in words)


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA's accuracy of one answer: min(1, people who said the same / 3), averaged over leaving each of them out."""
    given_answer, others = normalise(answer), [normalise(one) for one in people]
    same = others.count(given_answer)
    return sum(min(1.0, (same - (one == given_answer)) / 3) for one in others) / len(others)


def vqa(answers: Sequence[str], people: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> dict[str, Any]:
    """TextVQA, VQA v2, VizWiz: the mean of `soft_accuracy`, and that of each kind of question where they are given.

    people: for each question what they answered, ten of them in these three.
    """
    each = [soft_accuracy(answer, ten) for answer, ten in zip(answers, people, strict=True)]
    return {"accuracy": _mean(each), **_by_kind(each, kinds)}


def gqa(answers: Sequence[str], truth: Sequence[str], kinds: Sequence[str] = ()) -> dict[str, Any]:
    """GQA: the share of answers that are the true one, in lower case and without a full stop, as LLaVA submits them."""
    each = [float(gqa_answer(answer) == true) for answer, true in zip(answers, truth, strict=True)]
    return {"accuracy": _mean(each), **_by_kind(each, kinds)}


def gqa_answer(answer: str) -> str:
    return answer.rstrip(".").lower()


# -- yes or no: POPE, MME ------------------------------------------------------------------------


def pope(answers: Sequence[str], truth: Sequence[str], kinds: Sequence[str] = ()) -> dict[str, Any]:
    """POPE: f1, accuracy, precision, recall of "yes" and the share of it, by LLaVA's rules.

    An answer is no if its first sentence has the word "no" or "not", else yes.  truth: "yes" or "no".
    kinds: the category of each question (random, popular, adversarial); with them, figures of each category, and
    `mean_f1`, their mean, which is what papers print.
    """
    if kinds:
        figures = {kind: pope(*_of_kind(kind, kinds, answers, truth)) for kind in dict.fromkeys(kinds)}
        return {"mean_f1": _mean([figure["f1"] for figure in figures.values()]), **figures}
    claims_yes, there = [not _denies(answer) for answer in answers], [true == "yes" for true in truth]
    hits = sum(claim and true for claim, true in zip(claims_yes, there, strict=True))
    claims, positives = sum(claims_yes), sum(there)
    return {
        "f1": 2 * hits / (claims + positives) if claims + positives else 0.0,
        "accuracy": _mean([claim == true for claim, true in zip(claims_yes, there)]),
        "precision": hits / claims if claims else 0.0,
        "recall": hits / positives if positives else 0.0,
        "yes_ratio": claims / len(claims_yes),
        "questions": len(claims_yes),
    }


def _denies(answer: str) -> bool:
    return not {"No", "no", "not"}.isdisjoint(answer.split(".")[0].replace(",", "").split(" "))


SUBTASKS = {
    "perception": (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}  # fmt: skip


def mme(answers: Sequence[str], truth: Sequence[str], kinds: Sequence[str], images: Sequence[Any]) -> dict[str, Any]:
    """MME: points of each subtask (0..200) and their sums, perception (0..2000) and cognition (0..800).

    A subtask's points are the percentage of right answers and the percentage of images both of whose two questions
    are right.  An answer counts as yes or no by its first four letters.  truth: "yes" or "no".  kinds: the subtask of
    each question.  images: what tells the images apart.
    """
    right: dict[str, dict[Any, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for answer, true, kind, image in zip(answers, truth, kinds, images, strict=True):
        start = answer.lower()[:4]
        claim = "yes" if "yes" in start else "no" if "no" in start else "other"
        right[kind][image].append(claim == true.lower())
    points = {}
    for kind, pairs in right.items():
        if odd := [image for image, pair in pairs.items() if len(pair) != 2]:
            raise ValueError(f"MME asks two questions of each image; {kind} has {len(pairs[odd[0]])} of {odd[0]}")
        single = _mean([hit for pair in pairs.values() for hit in pair])
        points[kind] = 100 * (single + _mean([all(pair) for pair in pairs.values()]))
    sums = {name: sum(points[kind] for kind in group if kind in points) for name, group in SUBTASKS.items()}
    return {**sums, "per_subtask": points}


# -- one letter of several: ScienceQA, MMBench ---------------------------------------------------


def letter(answer: str) -> str | None:
    """The letter A to E that an answer chooses: alone, before ". ", or after "The answer is "; None if none is."""
    text = answer.replace("\n", ". ")
    if re.fullmatch("[A-E]", text.strip()):
        return text.strip()
    match = re.match(r"([A-E])\. ", text) or re.search(r"The answer is ([A-E])", text)
    return match and match[1]


def science_qa(answers: Sequence[str], truth: Sequence[str], with_image: Sequence[bool]) -> dict[str, Any]:
    """ScienceQA: the share of right letters, of all questions and of those with an image (`image_accuracy`)."""
    right = [letter(answer) == true for answer, true in zip(answers, truth, strict=True)]
    right_with_image = [hit for hit, image in zip(right, with_image, strict=True) if image]
    return {
        "accuracy": _mean(right),
        "image_accuracy": _mean(right_with_image),
        "correct": sum(right),
        "questions": len(right),
        "unreadable": sum(letter(answer) is None for answer in answers),
    }


def mmbench(answers: Sequence[str], truth: Sequence[str], numbers: Sequence[int]) -> dict[str, Any]:
    """MMBench: the share of questions that are right in every rotation of their options, letters read by `letter`.

    numbers: index of each question; those that are equal in their last six digits are rotations of one question.
    The server has a language model read answers that are no letter; here they are wrong, and counted.
    """
    rotations: dict[int, list[bool]] = defaultdict(list)
    for answer, true, number in zip(answers, truth, numbers, strict=True):
        rotations[number % 10**6].append(letter(answer) == true)
    return {
        "accuracy": _mean([all(hits) for hits in rotations.values()]),
        "single_accuracy": _mean([hit for hits in rotations.values() for hit in hits]),
        "questions": len(rotations),
        "unreadable": sum(letter(answer) is None for answer in answers),
    }


# -- graded by a language model: MM-Vet, LLaVA-Bench ---------------------------------------------


def mm_vet(grades: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """MM-Vet: mean grade in 0..100 of each run of the judge, and of all.  grades: by question, 0..1 of each run."""
    runs = [100 * _mean(run) for run in zip(*grades.values(), strict=True)]
    return {"total": _mean(runs), "runs": runs, "questions": len(grades)}


def llava_bench(pairs: Sequence[Sequence[float]], kinds: Sequence[str] = ()) -> dict[str, Any]:
    """LLaVA-Bench (in the wild): the judge's mark of the model as a percentage of that of its reference.

    pairs: for each question the two marks (1..10), the reference's first.
    """
    reference, model = (sum(marks) for marks in zip(*pairs, strict=True))
    by_kind = {kind: llava_bench(*_of_kind(kind, kinds, pairs))["relative"] for kind in dict.fromkeys(kinds)}
    return {"relative": 100 * model / reference, **({"per_kind": by_kind} if kinds else {})}


# ------------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _of_kind(kind: str, kinds: Sequence[str], *columns: Sequence[Any]) -> list[list[Any]]:
    return [[value for value, one in zip(column, kinds, strict=True) if one == kind] for column in columns]


def _by_kind(each: Sequence[float], kinds: Sequence[str]) -> dict[str, Any]:
    """{"per_kind": mean of each}, {} without kinds."""
    names = dict.fromkeys(kinds)
    return {"per_kind": {kind: _mean(*_of_kind(kind, kinds, each)) for kind in names}} if names else {}
