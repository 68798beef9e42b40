"""Names of images in one buffer: the same as a tuple of text, in less memory."""

from __future__ import annotations

import pickle
from itertools import count

import pytest
import torch

from secvit.images import Images, names
from secvit.images.names import Names

SOME = ("a/1.png", "", "b/é 漢.png", "\udcff not UTF-8.png", "a/1.png")


def test_names_are_a_sequence_of_text():
    found = Names.of(SOME)
    assert list(found) == list(SOME) and found == SOME and len(found) == 5
    assert [found[i] for i in range(-5, 5)] == [SOME[i] for i in range(-5, 5)]
    assert found[1:4] == SOME[1:4] and found[::-2] == SOME[::-2]
    assert "b/é 漢.png" in found and found.index("a/1.png") == 0 and found.count("a/1.png") == 2
    assert found != SOME[:4] and found != "text"
    with pytest.raises(IndexError):
        found[5]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_part_has_the_chosen_ones_in_their_order(chunk, monkeypatch):
    monkeypatch.setattr(names, "CHUNK", chunk)
    for chosen in ([], [0], [4, 2, 2, 0], list(range(5))):
        assert Names.of(SOME).select(chosen) == tuple(SOME[i] for i in chosen)
    assert list(Names.of(SOME)) == list(SOME)


def test_no_names_are_none():
    assert list(Names.of(())) == [] and Names.of(()) == () and Names.of(()).select([]) == ()


def test_they_survive_the_way_to_another_process():
    assert pickle.loads(pickle.dumps(Names.of(SOME))) == SOME


def test_images_keep_any_sequence_as_names_and_give_parts_of_it():
    images = Images("x", ("a", "b"), torch.tensor([0, 1, 0]), None, ("p", "q", "r"))
    assert isinstance(images.names, Names) and images.part("y", [2, 0]).names == ("r", "p")
    assert images.part("none", []).names == () and len(images.part("none", [])) == 0


def test_a_name_takes_its_bytes_and_eight_more():
    found = Names.of(f"{i:060d}" for i, _ in zip(count(), range(1000), strict=False))
    assert found.text.nbytes + found.ends.nbytes == 1000 * (60 + 8) + 8
