"""What a model sees of a photo that it is asked about."""

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.vlm.asking import ask
from secvit.vlm.small import small_llava, small_tokenizer


class Seen(Exception):
    pass


def test_an_opened_16_bit_photo_and_its_file_look_the_same(tmp_path, monkeypatch):
    processor = small_llava(small_tokenizer(["USER: what?"]), num_tokens=16)[1]
    pixels = (np.arange(96 * 96).reshape(96, 96) * 7).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = []

    def note(messages, **_):
        seen.extend(part["image"] for part in messages[0]["content"] if part["type"] == "image")
        raise Seen

    monkeypatch.setattr(processor, "apply_chat_template", note)
    with Image.open(tmp_path / "a.png") as opened:
        for photo in (opened, tmp_path / "a.png"):
            with pytest.raises(Seen):
                ask(None, processor, photo, "what?")
    views = [processor.image_processor([image], return_tensors="pt")["pixel_values"] for image in seen]
    assert len(views) == 2 and torch.equal(*views)
