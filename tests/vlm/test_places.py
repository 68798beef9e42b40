"""Where a run's conversations and images are, and what stands in for them when others are given."""

from dataclasses import replace

import pytest

from secvit.runs.llava import Llava
from secvit.vlm.config import Samples
from secvit.vlm.training import from_anywhere


def test_paths_of_conversations_hold_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = from_anywhere(Samples(images="photos", val="/a/val.json"))
    assert said == replace(Samples(), images=str(tmp_path / "photos"), val="/a/val.json")


def test_other_conversations_are_scored_with_val_and_images_of_their_own(tmp_path):
    run = object.__new__(Llava)
    run.path, run.config = tmp_path, {"samples": {"images": str(tmp_path), "val": "held_out.json"}}
    assert run._samples(other_data=False) == Samples(images=str(tmp_path), val="held_out.json")
    assert run._samples(other_data=True) == Samples(images=str(tmp_path))
    run.config = {"samples": {"images": str(tmp_path / "gone")}}
    assert run._samples(other_data=True) == Samples()
    with pytest.raises(ValueError, match="gone, which is not there now; give --data FILE.json"):
        run._samples(other_data=False)
