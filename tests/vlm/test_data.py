"""Conversations as tokens: which are learned, what is refused, in which order they come."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.train.sampler import Keys
from secvit.vlm.chat import TEMPLATES, Chat, check_prompt, messages, prepare
from secvit.vlm.config import Samples
from secvit.vlm.conversations import entries
from secvit.vlm.data import IGNORED, Conversations, files, grouped, load, read_samples, texts
from secvit.vlm.small import small_llava, small_tokenizer
from tests.vlm.make import entry, folder

OLD = (  # as released LLaVA-1.5 checkpoints of the hub have it, the space outside of the answer
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] if c['type'] == 'image' %}"
    "{{ '<image>\n' }}{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def processor_for(said, **options):
    options = {"num_tokens": 9, "image_size": 32, "patch_size": 4, **options}
    return small_llava(small_tokenizer(said, vocab_size=700), **options)[1]


@pytest.fixture
def made(tmp_path):
    samples, faults = read_samples(folder(tmp_path) / "train.json")
    assert not faults
    return samples, processor_for(texts(samples))


@pytest.fixture(scope="module")
def real(shared):
    """Real conversations: questions of many turns, and captions."""
    where = shared / "data" / "vl_coco"
    names = ("llava_vqa_val", "llava_captions_val")
    found = [read_samples(where / f"{name}.json", str(shared / "data" / "coco286")) for name in names]
    assert not any(faults for _, faults in found)
    samples = [one for many, _ in found for one in many]
    return samples, processor_for(texts(samples))


# -- which tokens are learned ------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_and_learned_tokens_are_the_whole_for_every_turn_of_every_sample(real, template):
    samples, processor = real
    chat = Chat(prepare(processor, template, pad=True))
    for one in samples:
        if template == "plain" and len(one.turns) > 1:
            continue
        ids, learned, starts = chat.encode(one)
        assert len(starts) == len(one.turns)
        said = []
        for turn, start in enumerate(starts):
            end = next((i for i in range(start, len(ids)) if not learned[i]), len(ids))
            assert chat.prompt(one, turn) == ids[:start]  # so prompt + learned is the whole
            said += range(start, end)
            answer = one.turns[turn][1]
            assert processor.tokenizer.decode(ids[start:end]) == (
                f" {answer}</s>" if template == "v1" else f"{answer}\n"
            )
        assert [i for i, now in enumerate(learned) if now] == said  # and nothing else is learned


def test_learned_tokens_are_those_of_the_templates_generation_blocks(real):
    samples, processor = real
    chat = Chat(prepare(processor, "v1", pad=True))
    for one in samples[:40]:
        made = processor.tokenizer.apply_chat_template(
            messages(one), chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
        )
        spread = [
            (token, bool(mask))
            for token, mask in zip(made["input_ids"], made["assistant_masks"])
            for _ in range(chat.image_tokens if token == chat.image_id else 1)
        ]
        assert list(zip(*chat.encode(one)[:2])) == spread


def test_tokens_and_pixels_are_those_of_the_processor(made):
    samples, processor = made
    chat = Chat(prepare(processor, "v1", pad=True))
    dataset = Conversations(samples, chat, [0] * len(samples))
    for i, one in enumerate(samples):
        said = messages(one)
        opened = iter(Image.open(path) for path in one.images)
        for turn in said:
            for part in turn["content"]:
                if part["type"] == "image":
                    part["image"] = next(opened)
        wanted = processor.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt")
        batch = dataset.__getitems__([i])
        assert torch.equal(batch["input_ids"], wanted["input_ids"])
        assert ("pixel_values" in batch) == bool(one.images)
        if one.images:
            assert torch.equal(batch["pixel_values"], wanted["pixel_values"])


def test_the_vicuna_template_is_llavas():
    said = [("<image>\nwhat?", "a cat"), ("sure?", "yes")]
    text = Chat(prepare(processor_for(["what"]), "v1", True)).text(
        messages(sample_of(entry("a", "a.png", said))), False
    )
    assert text == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nwhat? ASSISTANT: a cat</s>"
        "USER: sure? ASSISTANT: yes</s>"
    )


def sample_of(made):
    from pathlib import Path

    from secvit.vlm.data import sample

    return sample(made, "0", Path("x"))


def test_a_template_that_splits_an_answers_first_token_is_refused(made):
    samples, processor = made
    processor.chat_template = OLD.replace("{{ c['text'] + ' ' }}", "{{ c['text'] + ' ' }}").replace(
        "{{ 'ASSISTANT:' }}", "{{ 'ASSISTANT: ' }}"
    )
    with pytest.raises(ValueError, match="half prompt, half answer|generation would begin elsewhere"):
        check_prompt(Chat(processor), samples[0])


def test_a_template_whose_prompt_is_no_beginning_of_the_whole_is_refused(made):
    samples, processor = made
    processor.chat_template = OLD.replace("'ASSISTANT:'", "'Assistant:'")
    with pytest.raises(ValueError, match="does not go on from there"):
        Chat(processor).encode(samples[0])


def test_padding_is_neither_seen_nor_learned(made):
    samples, processor = made
    chat = Chat(prepare(processor, "v1", True))
    dataset = Conversations(samples, chat, [0] * len(samples))
    batch = dataset.__getitems__(list(range(len(samples))))
    for row, one in enumerate(samples):
        ids, learned, _ = chat.encode(one)
        n = len(ids)
        assert batch["input_ids"][row, :n].tolist() == ids
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
        assert (batch["labels"][row] != IGNORED).tolist() == learned + [False] * (batch["input_ids"].shape[1] - n)
    assert batch["pixel_values"].shape[0] == sum(len(one.images) for one in samples)


def test_images_are_made_square_by_a_border(made):
    _, processor = made
    white = Image.new("RGB", (64, 16), "white")
    pixels = prepare(processor, "v1", pad=True).image_processor(white, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 16].min() > 1.5 and pixels[:, 2].abs().max() < 0.02  # the mean colour is zero, within a grey level


# -- what is refused ---------------------------------------------------------------------------

BAD = {
    "none": (entry("none", "0.png", [("what?", "a cat")]), "sample 'none': 0 <image> in the questions for one image"),
    "two": (entry("two", "0.png", [("<image><image> what?", "a cat")]), "sample 'two': 2 <image> in the questions for one"),
    "no image": (entry("blind", None), "sample 'blind': 1 <image> in the questions for 0 images"),
    "in the answer": (entry("said", "0.png", [("what?", "a <image>")]), "sample 'said': <image> in answer 1"),
    "missing": (entry("gone", "gone.png"), "sample 'gone': .*gone.png: no such file; check the path and --samples.images"),
    "cut off": (entry("cut", "cut.png"), "sample 'cut': .*cut.png: broken or truncated"),
    "text": (entry("text", "text.png"), "sample 'text': .*text.png: not an image"),
    "long": (entry("long", "0.png", [("<image> what?", "cat " * 900)]), "sample 'long': .* tokens, 10 of them for images, and max_length is 400"),
    "asks": ({"id": "asks", "conversations": [{"from": "human", "value": "what?"}]}, "sample 'asks': expected human and gpt in turns"),
    "robot": ({"conversations": [{"from": "robot", "value": "what?"}]}, "entry 0, turn 0: from is 'robot', expected human or gpt"),
    "mute": (entry("mute", None, [("what?", " ")]), "sample 'mute': answer 1 is empty"),
    "list": ([], "entry 0: .*expected an object"),
    "number": ({"id": 3, "conversations": 3}, "entry 0, sample '3': conversations is 3, expected a list"),
}  # fmt: skip


@pytest.fixture(scope="module")
def images_and_chat(tmp_path_factory):
    path = folder(tmp_path_factory.mktemp("bad") / "data")
    whole = (path / "images" / "1.png").read_bytes()
    (path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (path / "images" / "text.png").write_text("no picture")
    Image.new("RGB", (90, 90), "red").save(path / "images" / "cut.jpg")
    (path / "images" / "cut.jpg").write_bytes((path / "images" / "cut.jpg").read_bytes()[:-80])
    return path, Chat(prepare(processor_for(["what is it? cat"]), "v1", True))


def attempt(where, chat, entries, **options):
    path = where / "bad.json"
    path.write_text(json.dumps(entries))
    return load(path, Samples(**{"max_length": 400, **options}), chat)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_named_before_the_first_step(images_and_chat, name):
    bad, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        attempt(*images_and_chat, [bad, entry("good", "1.png")])


def test_all_bad_samples_are_named_together(images_and_chat):
    with pytest.raises(ValueError) as found:
        attempt(*images_and_chat, [entry("good", "1.png"), *(bad for bad, _ in BAD.values())])
    for number, (_, message) in enumerate(BAD.values(), 1):
        assert message.split(":")[0].replace("entry 0", f"entry {number}") in str(found.value), message


def test_a_check_of_headers_reads_no_pixels(images_and_chat):
    entries = [entry("cut", "cut.jpg"), entry("good", "1.png")]
    with pytest.raises(ValueError, match="sample 'cut'"):
        attempt(*images_and_chat, entries)
    assert len(attempt(*images_and_chat, entries, check="header")[0]) == 2
    with pytest.raises(ValueError, match="sample 'text': .*text.png: not an image"):
        attempt(*images_and_chat, [entry("text", "text.png"), *entries], check="header")


def test_long_samples_are_left_out_if_asked(images_and_chat):
    samples, lengths = attempt(*images_and_chat, [BAD["long"][0], entry("good", "1.png")], too_long="drop")
    assert [one.id for one in samples] == ["good"] and max(lengths) <= 400


def test_a_caption_template_wants_an_image_and_its_caption(images_and_chat):
    with pytest.raises(ValueError, match="sample 'blind': 0 images, 1 answers; the plain template is for captions"):
        attempt(*images_and_chat, [entry("blind", None, [("what?", "a cat")])], template="plain")
    with pytest.raises(ValueError, match="sample 'talk': 1 images, 2 answers"):
        attempt(*images_and_chat, [entry("talk", "1.png", [("<image>", "a cat"), ("so?", "no")])], template="plain")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "3"])
def test_a_file_that_is_no_list_of_conversations_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: (cannot be read as JSON|expected a list)"):
        read_samples(tmp_path / "a.json")


def test_a_folder_without_one_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected train\.json or a single JSON file, found none"):
        files(tmp_path, Samples())
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match=r"found a\.json, b\.json"):
        files(tmp_path, Samples())
    (tmp_path / "b.json").rename(tmp_path / "val.json")
    assert files(tmp_path, Samples()) == (tmp_path / "a.json", tmp_path / "val.json")


def test_a_leading_answer_is_left_out_and_ids_may_be_numbers():
    made = {"id": 7, "conversations": [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]}  # fmt: skip
    assert sample_of(made).turns == (("a?", "b"),) and sample_of(made).id == "7"


def test_an_image_broken_after_the_check_is_replaced_and_counted(made, tmp_path, caplog):
    samples, processor = made
    dataset = Conversations(samples, Chat(prepare(processor, "v1", True)), [0] * len(samples))
    shutil.copy(samples[0].images[0], tmp_path / "kept.png")
    open(samples[0].images[0], "w").close()
    assert torch.equal(dataset.__getitems__([0])["input_ids"], dataset.__getitems__([1])["input_ids"])
    assert dataset.skipped == ["p0"] and "sample 'p0'" in caplog.text
    open(samples[1].images[0], "w").close()
    with pytest.raises(ValueError, match="too many"):
        dataset.__getitems__([1])


# -- types, and what a file may be --------------------------------------------------------------

HUMAN, GPT = {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}
TYPES = {
    "image: number": ({"image": 5}, "image is 5, expected the path of an image"),
    "image: numbers": ({"image": ["0.png", 5]}, "expected the path of an image"),
    "image: object": ({"image": {"0.png": 1}}, "expected the path of an image"),
    "image: no path": ({"image": "0.png\0"}, "expected the path of an image"),
    "image by another name": ({"image": None, "images": ["0.png"]}, "has 'images'; LLaVA's name for images is 'image'"),
    "id: list": ({"id": [1]}, "entry 1: id is [1], expected text or a whole number"),
    "id: NaN": ({"id": float("nan")}, "id is NaN, expected text or a whole number"),
    "no turns": ({"conversations": []}, "expected human and gpt in turns, gpt last, found none"),
    "turns: text": ({"conversations": "USER: what?"}, "conversations is 'USER: what?', expected a list"),
    "turn: text": ({"conversations": [HUMAN, GPT, "USER: so?", "it sleeps"]}, "turn 2: 'USER: so?', expected an object"),
    "from: list": ({"conversations": [{"from": ["human"], "value": "x"}, GPT]}, 'turn 0: from is ["human"], expected human'),
    "value: number": ({"conversations": [HUMAN, {"from": "gpt", "value": 2.5}]}, "turn 1: value is 2.5, expected text"),
    "no value": ({"conversations": [HUMAN, {"from": "gpt", "text": "x"}]}, "turn 1: no 'value'"),
    "half a sign": ({"conversations": [HUMAN, {"from": "gpt", "value": "\ud800"}]}, "no Unicode text"),
    "image in image": ({"conversations": [{"from": "human", "value": "<im<image>age>"}, GPT]}, "is left in turn 1"),
    "nothing asked": ({"image": None, "conversations": [{"from": "human", "value": " "}, GPT]}, "question 1 is empty"),
    "two in a row": ({"conversations": [HUMAN, HUMAN, GPT]}, "found human, human, gpt"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "fault"), TYPES.values(), ids=TYPES)
def test_a_value_of_another_type_is_a_fault_with_entry_and_field(tmp_path, changed, fault):
    whole = {"id": "s", "image": "0.png", "conversations": [HUMAN, GPT]}
    (tmp_path / "a.json").write_text(json.dumps([whole, whole | changed]))
    samples, faults = read_samples(tmp_path / "a.json")
    assert [one.id for one in samples] == ["s"] and len(faults) == 1
    assert faults[0].startswith("entry 1") and fault in faults[0]


def test_what_is_meant_is_taken(tmp_path):
    said = [{"from": "Human", "value": "what?"}, {"from": "GPT", "value": 5}]
    entries = [{"id": 7.0, "conversations": said}, {"id": None, "image": "", "conversations": said}]
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(entries).encode())
    samples, faults = read_samples(tmp_path / "a.json")
    assert not faults and [(*one,) for one in samples] == [
        ("7", (), (), (("what?", "5"),)),
        ("1", (), (), (("what?", "5"),)),
    ]


BYTES = {
    "deep": (b"[" * 100_000 + b"]" * 100_000, "entry 0: nested too deeply"),
    "cut off": (b'[{"id": "a"},\n{"id', "entry 1, line 2: Unterminated string"),
    "no end": (b'[{"id": "a"}', "after entry 0, line 1, the list is cut off"),
    "two lists": (b'[{"id": "a"}]\n[]', "line 2: text after the list"),
    "lines": (b'{"id": "a"}\n{"id": "b"', "entry 1, line 2: Expecting"),
    "an object": (b'{"data": [], "n": 3}', r"found one object; of the lists in it \('data'\)"),
    "a key twice": (
        b'[{"id": "a"},\n{"id": "b", "id": "c"}]',
        "entry 1: .*'id' stands twice in one object, as 'b' and 'c'",
    ),
    "latin": ('[{"id": "\xe9"}]'.encode("latin-1"), "not UTF-8 text .* at byte 9"),
    "digits": (b"[" + b"9" * 5000 + b"]", "entry 0: not readable JSON"),
}


@pytest.mark.parametrize(("content", "fault"), BYTES.values(), ids=BYTES)
def test_a_file_that_is_no_json_list_is_named_with_the_place(tmp_path, content, fault):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json: .*{fault}"):
        read_samples(tmp_path / "a.json")


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_entries_are_the_same_whatever_is_read_at_once(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("secvit.vlm.conversations.CHUNK", chunk)
    values = [{"a": 'é😀\\"]'}, 12.5, [[], {}], "x" * 30, True, None, -3]
    (tmp_path / "a.json").write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
    assert list(entries(tmp_path / "a.json")) == values


def test_packed_samples_are_a_sequence_of_the_samples(made):
    samples, _ = made
    assert [samples[i] for i in range(len(samples))] == list(samples) == samples[:] and samples[-1].id == "t2"
    assert samples.take([3, 1])[:] == [samples[3], samples[1]] and samples.take([]) == []
    assert samples.take([3]).where(0) == "entry 3, sample 'p3'"


# -- small faults that LLaVA's loader takes -----------------------------------------------------


def said(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


ODD = {  # entry -> what is taken of it, None for nothing
    "stray": ({"conversations": said("<image> why?", "so")}, (("why?", "so"),)),
    "stray in the answer": ({"conversations": said("why?", "<image> so")}, (("why?", "so"),)),
    "nothing but stray": ({"conversations": said("<image>", "so")}, None),
    "question last": ({"image": "1.png", "conversations": said("<image> a?", "b", "c?")}, (("a?", "b"),)),
    "image in the last question": ({"image": "1.png", "conversations": said("a?", "b", "<image> c?")}, None),
    "only a question": ({"conversations": said("a?")}, None),
    "empty answer": ({"conversations": said("a?", "b", "c?", " ", "d?", "e")}, (("a?", "b"),)),
    "empty first answer": ({"conversations": said("a?", "", "c?", "d")}, None),
    "named twice": ({"image": "1.png", "conversations": said("<image> <image> a?", "b")}, (("a?", "b"),)),
    "named in two questions": ({"image": "1.png", "conversations": said("<image> a?", "b", "<image>c?", "d")}, None),
    "not named": ({"image": "1.png", "conversations": said("a?", "b")}, None),
    "two in a row": ({"conversations": said("a?", "b") + said("c?", "d")[1:]}, None),
    "a text as turn": ({"conversations": [*said("a?", "b"), "c?"]}, None),
}


@pytest.mark.parametrize("name", ODD)
def test_a_small_fault_is_taken_as_llava_takes_it_or_left_out_and_said(images_and_chat, caplog, name):
    odd, turns = ODD[name]
    entries = [entry("good", "1.png"), {"id": name, **odd}]
    with pytest.raises(ValueError, match=f"entry 1, sample '{name}'.*\n--samples.drop_broken true leaves such"):
        attempt(*images_and_chat, entries)
    samples, lengths = attempt(*images_and_chat, entries, drop_broken=True)
    assert [one.id for one in samples] == ["good", name][: 1 + (turns is not None)] and len(lengths) == len(samples)
    assert turns is None or samples[1].turns == turns
    (line,) = [record.message for record in caplog.records]
    what = (
        f"used {len(samples)} of 2 samples; {'left out' if turns is None else 'taken as LLaVA takes them'}: 1 (entry 1"
    )
    assert what in line and f"sample '{name}'" in line


def test_the_first_twenty_of_what_is_left_out_are_named_in_one_line(images_and_chat, caplog):
    entries = [entry(f"s{i}", None, [("a?", "")]) for i in range(1200)]
    samples, _ = attempt(*images_and_chat, [*entries, entry("good", "1.png")], drop_broken=True)
    (line,) = [record.message for record in caplog.records]
    assert len(samples) == 1 and "used 1 of 1,201 samples; left out: 1,200 (" in line
    assert "'s19'" in line and "'s20'" not in line and line.endswith("; and 1,180 more)")
    with pytest.raises(ValueError, match="no sample"):
        attempt(*images_and_chat, entries, drop_broken=True)


def test_an_image_that_is_missing_is_left_out_and_many_are_an_error(images_and_chat, caplog):
    entries = [entry(f"s{i}", "1.png") for i in range(5)]
    samples, _ = attempt(*images_and_chat, [*entries, entry("gone", "gone.png")], drop_broken=True)
    assert len(samples) == 5 and "used 5 of 6 samples" in caplog.text and "gone.png: no such file" in caplog.text
    with pytest.raises(ValueError, match=r"(?s)'gone'.*'lost'.*2 images are missing below .*images; .*too many"):
        attempt(*images_and_chat, [*entries, entry("gone", "gone.png"), entry("lost", "l.png")], drop_broken=True)


@pytest.mark.parametrize("images", [None, "LLaVA-Pretrain", "LLaVA-Pretrain/images"])
def test_the_images_of_stage_1_are_found_in_llavas_layout(tmp_path, images):
    where = tmp_path / "LLaVA-Pretrain"
    (where / "images" / "00001").mkdir(parents=True)
    (where / "images" / "00001" / "1.png").touch()
    file = where / "blip_laion_cc_sbu_558k.json"
    for path in ("00001/1.png", "images/00001/1.png"):
        file.write_text(json.dumps([entry("a", path)]))
        samples, _ = read_samples(file, images and str(tmp_path / images))
        assert samples[0].images == (str(where / "images" / "00001" / "1.png"),)


def test_a_folders_files_are_named_by_their_splits_word(tmp_path):
    for name in ("Training.JSON", "validation.json", "test.json", "._x.json"):
        (tmp_path / name).write_text("[]")
    assert files(tmp_path, Samples()) == (tmp_path / "Training.JSON", tmp_path / "validation.json")


# -- the order ---------------------------------------------------------------------------------


def test_batches_have_similar_lengths_and_one_modality(made):
    noise = np.random.default_rng(0)
    lengths, pictures = torch.from_numpy(noise.integers(20, 900, 1003)), torch.from_numpy(noise.random(1003) < 0.7)
    order = grouped(lengths, pictures, 16, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(1003))
    batches = order[: 1003 // 16 * 16].view(-1, 16)
    kinds = pictures[batches]
    assert (kinds.all(1) | ~kinds.any(1)).sum() >= len(batches) - 1  # one at most is of what filled no batch
    spread = (lengths[batches].amax(1) - lengths[batches].amin(1)).float()
    assert spread.median() < 60  # of random batches: 780
    assert lengths[batches].float().mean(1).diff().abs().mean() > 100  # not one long descent
    again = grouped(lengths, pictures, 16, torch.Generator().manual_seed(0))
    other = grouped(lengths, pictures, 16, torch.Generator().manual_seed(1))
    assert torch.equal(order, again) and not torch.equal(order, other)


def test_the_order_of_a_resumed_run_is_that_of_the_unbroken_one(made):
    samples, processor = made
    chat = Chat(prepare(processor, "v1", True))
    dataset = Conversations(samples, chat, [len(chat.encode(one).ids) for one in samples], group=4)
    whole = list(Keys(len(dataset), 4, 0, 0, 9, parts=2, order=dataset.order))
    assert list(Keys(len(dataset), 4, 0, 5, 9, parts=2, order=dataset.order)) == whole[10:]
    first = [key % len(dataset) for part in whole[:6] for key in part]
    assert len(set(first)) == 12  # an epoch sees no sample twice


def test_lengths_count_what_an_image_becomes(made, tmp_path):
    samples, processor = made
    chat = Chat(prepare(processor, "v1", True))
    found, lengths = load(tmp_path / "train.json", Samples(), chat)
    assert found == samples and lengths == [len(chat.encode(one).ids) for one in samples]
    assert chat.image_tokens == 10 and all(
        sum(t == chat.image_id for t in chat.encode(one).ids) == 10 * len(one.images) for one in samples
    )


@pytest.mark.parametrize(("name", "value"), [("images", ["0.png", "1.png"]), ("video", "x.mp4"), ("videos", ["x.mp4"])])
def test_images_or_videos_beside_the_image_are_not_dropped(tmp_path, name, value):
    samples = [entry("a", "0.png"), {**entry("b", "0.png"), name: value}, {**entry("c", "0.png"), "images": ["0.png"]}]
    (tmp_path / "a.json").write_text(json.dumps(samples))
    found, faults = read_samples(tmp_path / "a.json")
    assert [one.id for one in found] == ["a", "c"]
    assert len(faults) == 1 and f"entry 1, sample 'b': has {name!r} beside '0.png' in 'image'" in faults[0]


def test_json_lines_are_read_as_a_list_is(tmp_path):
    samples = [entry("a", "0.png"), entry("b", "1.png")]
    (tmp_path / "a.json").write_text(json.dumps(samples))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, samples)) + "\n")
    assert read_samples(tmp_path / "b.jsonl") == read_samples(tmp_path / "a.json")
    (tmp_path / "a.json").rename(tmp_path / "val.json")
    assert files(tmp_path, Samples()) == (tmp_path / "b.jsonl", tmp_path / "val.json")
