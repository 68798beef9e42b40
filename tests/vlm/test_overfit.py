"""Eight real photos with questions, learned by heart by the command and asked again; minutes of one core."""

import json

import pytest

from secvit.cli import main
from secvit.vlm import ask, load_trained
from secvit.vlm.data import read_samples

pytestmark = pytest.mark.slow


def eight(shared, file):
    """Eight photos, each with the same first question, so that the image alone tells the answer, and one of its own."""
    vl = shared / "data" / "vl_coco"
    captions, questions = (json.loads((vl / f"llava_{kind}_val.json").read_text()) for kind in ("captions", "vqa"))
    first = {}
    for entry in captions:
        first.setdefault(entry["image"], entry)
    own = {entry["image"]: entry["conversations"][2:4] for entry in questions if len(entry["conversations"]) > 3}
    chosen = [entry for image, entry in first.items() if image in own][:8]
    for entry in chosen:
        entry["conversations"] += own[entry["image"]]
    file.write_text(json.dumps(chosen))
    return shared / "data" / "coco286"


def test_eight_photos_are_answered_word_for_word(shared, tmp_path, capsys):
    images = eight(shared, tmp_path / "eight.json")
    run, words = tmp_path / "run", ["--data", str(tmp_path / "eight.json"), "--samples.images", str(images)]
    options = ["--loop.device", "cpu", "--samples.cache", str(tmp_path / "cache")]
    assert main(["train", "vlm.small", *words, "--output", str(run), *options]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["exact"] == 1 and result["tokens_of_a_picture"] == 144 + 1
    assert result["recipe"]["model"]["extra_token"] == "cls" and result["samples"]["train"] == 8

    llava, processor = load_trained(run, "cpu")
    assert llava.config.image_seq_length == 145 and llava.config.vision_config.image_size // 4 == 24
    samples, _ = read_samples(tmp_path / "eight.json", str(images))
    assert len({one.turns[0][0] for one in samples}) == 1 and len({one.turns[0][1] for one in samples}) == 8
    said = [ask(llava, processor, one.images, one.turns[0][0], max_new_tokens=60) for one in samples]
    assert said == [one.turns[0][1] for one in samples]

    capsys.readouterr()
    photo, (question, answer) = samples[3].images[0], samples[3].turns[0]
    assert main(["ask", str(run), photo, question, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == answer
