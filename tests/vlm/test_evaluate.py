"""A model over a benchmark: answers written as they come, taken up again, shared, scored by the command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.cli import main
from secvit.vlm import benchmarks, evaluate
from secvit.vlm.benchmarks import Question, read_lines
from secvit.vlm.evaluate import answer, reply
from secvit.vlm.small import small_llava
from tests.train.launch import launch


def sayable(tokenizer) -> list[int]:
    """Tokens that are no letters: without them what a random model says can be read."""
    return [i for word, i in tokenizer.get_vocab().items() if not word.isascii() or not word.isalpha()]


@pytest.fixture(scope="module")
def llava(tokenizer):
    torch.manual_seed(0)
    model, processor = small_llava(tokenizer, num_tokens=4, image_size=32, patch_size=8)
    model.generation_config.suppress_tokens = sayable(tokenizer)
    return model, processor


@pytest.fixture(scope="module")
def pope(tmp_path_factory):
    """POPE of five images, two questions about each."""
    folder = tmp_path_factory.mktemp("pope")
    (folder / "coco").mkdir()
    (folder / "val2014").mkdir()
    noise = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(noise.integers(0, 255, (30 + i, 40, 3), dtype=np.uint8)).save(folder / "val2014" / f"{i}.png")
    things = ["cat", "dog", "very large and hairy elephant"]
    rows = [
        {
            "question_id": i,
            "image": f"{i // 2}.png",
            "text": f"Is there a {things[i % 3]}?",
            "label": ["yes", "no"][i % 2],
        }
        for i in range(10)
    ]
    (folder / "coco" / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def questions(pope):
    """POPE's ten, and one without an image in their midst."""
    asked = benchmarks.load("pope", pope)
    return [*asked[:3], Question("text", "how are you?", None), *asked[3:]]


def ask(llava, questions, path, **options):
    return answer(*llava, questions, path, max_new_tokens=4, **options)


def test_answers_are_in_the_questions_order_in_llavas_format(llava, questions, tmp_path):
    said = ask(llava, questions, tmp_path / "a.jsonl", name="mine")
    rows = read_lines(tmp_path / "a.jsonl")
    assert [row["text"] for row in rows] == said and len(set(said)) > 1 and all(said)
    assert [row["question_id"] for row in rows] == [question.id for question in questions]
    assert [row["prompt"] for row in rows] == [question.prompt for question in questions]
    assert {row["model_id"] for row in rows} == {"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_answer_does_not_depend_on_the_batch(llava, questions, tmp_path):
    assert ask(llava, questions, tmp_path / "one.jsonl") == ask(llava, questions, tmp_path / "four.jsonl", batch_size=4)


def test_some_conversations_without_an_image(llava, questions):
    talks = [*conversations(questions[2:5])]
    whole = reply(*llava, talks, max_new_tokens=4)
    assert whole == [reply(*llava, [talk], max_new_tokens=4)[0] for talk in talks]


def conversations(questions):
    for one in questions:
        picture = [{"type": "image", "image": Image.open(one.image)}] if one.image else []
        yield [{"role": "user", "content": [*picture, {"type": "text", "text": one.prompt}]}]


def test_what_was_answered_before_an_end_is_not_asked_again(llava, questions, tmp_path, monkeypatch):
    whole, path = ask(llava, questions, tmp_path / "whole.jsonl"), tmp_path / "ended.jsonl"
    asked, generate = [], evaluate.generate_texts

    def end_after_three(model, processor, inputs, **options):
        asked.append(len(inputs["input_ids"]))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return generate(model, processor, inputs, **options)

    monkeypatch.setattr(evaluate, "generate_texts", end_after_three)
    with pytest.raises(KeyboardInterrupt):
        ask(llava, questions, path, batch_size=2)
    part = tmp_path / "ended.jsonl.part0"
    assert len(read_lines(part)) == 6 and not path.exists()
    part.write_text(part.read_text()[:-30])  # as a power cut leaves it
    assert ask(llava, questions, path, batch_size=2) == whole
    assert sum(asked[4:]) == 11 - 5
    asked.clear()
    assert ask(llava, questions, path) == whole and not asked


def test_answers_of_other_weights_or_questions_are_refused(llava, questions, tmp_path):
    path, (model, processor) = tmp_path / "a.jsonl", llava
    ask(llava, questions[:2], path)
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: an answer of other weights or settings; delete"):
        answer(model, processor, questions, path, max_new_tokens=5)
    with torch.no_grad():
        before = model.lm_head.weight[0, 0].clone()
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(ValueError, match="other weights or settings"):
        ask(llava, questions, path)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = before
    with pytest.raises(ValueError, match="line 2: an answer to another benchmark's question random/1"):
        ask(llava, questions[:1], path)


def test_a_broken_image_is_named_with_its_question_and_what_came_before_is_kept(llava, questions, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(questions[0].image.read_bytes()[:200])
    asked = [*questions[:2], Question("q9", "what?", broken)]
    with pytest.raises(ValueError, match=r"question q9: .*broken.png: broken or truncated"):
        ask(llava, asked, tmp_path / "a.jsonl")
    assert len(read_lines(tmp_path / "a.jsonl.part0")) >= 1


@pytest.mark.slow
def test_two_processes_answer_what_one_does(llava, questions, tmp_path):
    for part in llava:
        part.save_pretrained(tmp_path / "llava")
    # answers of a third process, of a run that ended
    ask(llava, questions, tmp_path / "one.jsonl")
    lines = (tmp_path / "one.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "two.jsonl.part2").write_text("".join(lines[4:6]))
    code = f"""
import torch.distributed as dist
from secvit.vlm import SecLlavaForConditionalGeneration, SecLlavaProcessor
from secvit.vlm.benchmarks import load, Question
from secvit.vlm.evaluate import answer
dist.init_process_group("gloo")
folder = "{tmp_path}"
model = SecLlavaForConditionalGeneration.from_pretrained(folder + "/llava").eval()
asked = load("pope", "{questions[0].image.parents[1]}")
asked = [*asked[:3], Question("text", "how are you?", None), *asked[3:]]
answer(model, SecLlavaProcessor.from_pretrained(folder + "/llava"), asked, folder + "/two.jsonl", max_new_tokens=4)
"""
    done = launch(tmp_path, code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    assert not [*tmp_path.glob("*.part*")]


def test_the_command_answers_and_scores_and_scores_again(llava, pope, tmp_path, capsys):
    for part in llava:
        part.save_pretrained(tmp_path / "run")
    words = ["evaluate", "--benchmark", "pope", "--data", str(pope), "--device", "cpu"]
    assert main([*words, str(tmp_path / "run"), "--batch_size", "4"]) == 0
    first = capsys.readouterr().out
    answers = tmp_path / "run" / "answers" / "pope_val.jsonl"
    # a random model never says no
    assert "mean_f1" in first and "recall               1.0000" in first and len(read_lines(answers)) == 10
    found = json.loads(answers.with_suffix(".scores.json").read_text())
    assert found["random"]["yes_ratio"] == 1 and found["random"]["precision"] == 0.5
    words.remove("--device")
    words.remove("cpu")
    assert main([*words, str(answers)]) == 0
    assert capsys.readouterr().out == first
    assert main(words) == 2
    assert "which run?" in capsys.readouterr().err


def test_llavas_own_prompt_and_squares_are_asked_for_by_template(llava, pope, tmp_path):
    for part in llava:
        part.save_pretrained(tmp_path / "run")
    paths = [tmp_path / "own.jsonl", tmp_path / "v1.jsonl"]
    for path, template in zip(paths, (None, "v1")):
        options = {"answers": path, "template": template, "device": "cpu", "batch_size": 5}
        assert evaluate.evaluate_checkpoint(tmp_path / "run", "pope", pope, **options)["answered"] == 10
    own, v1 = ({row["metadata"]["made_with"] for row in read_lines(path)} for path in paths)
    assert own != v1


def test_a_file_of_answers_is_scored_by_the_command_without_a_network(pope, tmp_path, capsys):
    asked = benchmarks.load("pope", pope)
    rows = [{"question_id": one.id, "prompt": one.prompt, "text": "Yes"} for one in asked]
    file = tmp_path / "theirs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert main(["evaluate", str(file), "--benchmark", "pope", "--data", str(pope)]) == 0
    assert "yes_ratio            1.0000" in capsys.readouterr().out
