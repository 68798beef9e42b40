import importlib
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def glyphs():
    return script("glyphs")


@pytest.fixture(scope="module")
def questions():
    return script("questions")


def script(name):
    if not (BENCHMARKS / f"{name}.py").is_file():
        pytest.skip(f"no {BENCHMARKS}: run from a checkout")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


# -- the task ----------------------------------------------------------------------------------------


def test_answers_are_true_of_the_glyphs(glyphs, questions, photos):
    rng, recipe = random.Random(0), glyphs.HOUR
    photo = Image.open(photos / "0.png")
    for _ in range(20):
        image, placed = questions.glyph_image(photo, recipe, rng)
        by_colour = {colour: (symbol, box) for symbol, colour, box in placed}
        assert len(by_colour) == len(placed), "two of one colour"
        asked = questions.questions(placed, recipe, rng)
        assert len(asked) == 7
        for (kind, about), answer in asked:
            if kind == "read":
                assert answer == by_colour[about][0]
            elif kind == "exist":
                assert (answer == "yes") == any(symbol == about for symbol, _, _ in placed)
            elif kind == "left":
                left, _, right, _ = by_colour[about][1]
                assert (answer == "yes") == ((left + right) / 2 < image.width / 2)
            else:
                assert answer == str(len(placed))


def test_glyphs_lie_inside_and_apart_and_show_their_colour(glyphs, questions, photos):
    rng, recipe = random.Random(1), glyphs.HOUR
    photo = Image.open(photos / "1.png")
    for _ in range(20):
        image, placed = questions.glyph_image(photo, recipe, rng)
        pixels = np.asarray(image).astype(int)
        for number, (_, colour, box) in enumerate(placed):
            left, top, right, bottom = (int(edge) for edge in box)
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            off = abs(pixels[top:bottom, left:right] - questions.COLOURS[colour]).max(axis=-1)
            assert (off < 60).sum() >= 5  # of 255; strokes are a pixel wide and their edges smoothed
            assert not any(questions.overlap(box, other) for _, _, other in placed[:number])


def test_a_patch_is_labelled_with_what_covers_it(questions):
    # a thing over the four patches of rows 1, 2 and columns 2, 3, and one that covers an eighth of the first patch
    things = [((16, 8, 32, 24), 7, 2), ((0, 0, 8, 1), 1, 0)]
    cells = torch.tensor(questions.cells_of(things, (32, 64), 8)).view(4, 8, 2)
    assert (cells[1:3, 2:4] == torch.tensor([8, 3])).all()
    assert cells.count_nonzero() == 8


def test_no_photo_is_in_both_splits(questions, photos, tmp_path):
    seen = {split: {photo.tobytes() for photo in questions.photos_of(photos, split, 40)} for split in ("train", "val")}
    assert len(seen["train"]) == 8 and len(seen["val"]) == 2
    assert not seen["train"] & seen["val"]
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    Image.open(photos / "3.png").save(tmp_path / "val" / "3.png")
    assert len(questions.photos_of(tmp_path, "val", 40)) == 1
    with pytest.raises(ValueError, match="no photos for train"):
        questions.photos_of(tmp_path, "train", 40)


@pytest.mark.parametrize("size", ["HOUR", "TINY", "LARGE"])
def test_each_recipe_makes_images_and_a_whole_grid_of_patches(glyphs, questions, photos, size):
    recipe = replace(getattr(glyphs, size), train_images=4)
    split = questions.glyph_split(photos, "train", recipe, 0)
    side = recipe.image // recipe.patch
    assert split.pixels.shape == (4, 3, recipe.image, recipe.image) and split.cells.shape == (4, side * side, 2)
    assert split.cells[..., 1].max() <= recipe.colours and (split.cells[..., 0] > 0).any(dim=1).all()


def test_half_of_the_exist_questions_are_yes(glyphs, questions, photos):
    split = questions.glyph_split(photos, "train", glyphs.TINY, 0)
    assert questions.majority(split)["exist"] == 0.5
    assert split.words.max() < len(split.vocabulary) and split.answers.min() > 0


def test_shapes_of_a_scene_lie_where_its_labels_say(glyphs, questions, shared):
    folder = shared / "data" / "nlvr2k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    split = questions.scene_split(folder, "train", replace(glyphs.HOUR, train_images=24), 0)  # four in six orders each
    means = torch.nn.functional.avg_pool2d(split.pixels.float(), 8).flatten(2).mT
    yellow = split.cells[..., 1] == questions.PAINTS.index("yellow") + 1
    black = split.cells[..., 1] == questions.PAINTS.index("black") + 1
    empty = split.cells[..., 0] == 0
    assert means[yellow][:, 0].mean() > means[yellow][:, 2].mean() + 100  # red without blue
    assert means[black].mean() < means[empty].mean() - 60  # the boxes are grey
    assert {split.vocabulary[number] for number in split.answers.flatten()} == {"true", "false"}


# -- the networks -----------------------------------------------------------------------------------


def test_cls_attention_is_that_of_the_last_block(glyphs):
    tower = glyphs.Tower(32, 2, 8, 16, 3, 6).eval()
    attn, seen = tower.blocks[-1].attn, []
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda module, inputs, weights: seen.append(weights))
    with torch.no_grad():
        tokens, cls, attention = tower(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert tokens.shape == (2, 16, 32) and cls.shape == (2, 32)
    # float32, sums in another order
    torch.testing.assert_close(attention, seen[0][:, :, 0, 1:].mean(dim=1), rtol=1e-5, atol=1e-6)


def test_a_question_sees_the_image_and_itself_and_no_other_question(glyphs):
    model = glyphs.Answerer(torch.nn.Identity(), replace(glyphs.TINY, depth=2), 9, 2, 4).eval()
    model.connector.forward = lambda tokens, **kwargs: tokens
    image, words = torch.randn(1, 4, 16), torch.tensor([[[1, 2], [3, 0], [5, 6]]])
    other = words.clone()
    other[:, 2] = 7
    with torch.no_grad():
        one, two = (model((image, None, None), w, (2, 2)) for w in (words, other))
        moved = model((-image, None, None), words, (2, 2))
        padded = words.clone()
        padded[0, 1, 1] = 0
        short = model((image, None, None), padded[:, 1:2], (2, 2))
    assert torch.equal(one[:, :2], two[:, :2]) and not torch.allclose(one[:, 2], two[:, 2])
    assert not torch.allclose(one, moved)
    # the answer to a word of one is read at that word; float32, sums in another order
    torch.testing.assert_close(short[:, 0], one[:, 1], rtol=1e-4, atol=1e-5)


def test_the_learning_rate_warms_up_stays_and_falls_to_nearly_nothing(glyphs):
    model, rates = torch.nn.Linear(2, 1), []
    adamw = torch.optim.AdamW

    class Watched(adamw):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.optim, "AdamW", Watched)
        steps = list(glyphs.learn(model, lambda rows: model(torch.ones(len(rows), 2)).mean(), 8, 40, 4, 1.0, 0.2, 0))
    assert steps == list(range(1, 41))
    assert rates[0] == 0.5 and set(rates[1:33]) == {1.0}
    assert rates[-1] == pytest.approx(1 / 8)


def test_equal_time_is_read_by_the_fastest_pace_of_each_connector(glyphs):
    def job(name, seconds, *shares):
        curve = [{"step": 50 * (i + 1), "read": share} for i, share in enumerate(shares)]
        return {"connector": name, "tokens": 4, "steps": 100, "seconds": seconds, "curve": curve}

    jobs = [job("quick", 10, 0.2, 0.4), job("quick", 30, 0.6, 0.8), job("slow", 20, 0.4, 0.8)]
    assert glyphs.at_equal_time(jobs, ["read"], decay=0.5) == pytest.approx(5)  # 50 steps of the quick one's first seed
    assert [found["equal_time"]["read"] for found in jobs] == pytest.approx([0.2, 0.6, 0.2])


# -- the whole ----------------------------------------------------------------------------------------


def call(glyphs, photos, output, *words):
    options = ["--data", str(photos), "--output", str(output), "--results", str(output), "--tokens", "4", "--tiny"]
    glyphs.main([*options, *words])


def test_a_tiny_run_leaves_a_result_and_is_not_run_again(glyphs, photos, tmp_path, monkeypatch):
    words = ["--only", "sec", "mlp, all tokens", glyphs.QUESTION_ONLY, "--seeds", "0", "1"]
    call(glyphs, photos, tmp_path, *words)
    (path,) = tmp_path.glob("connectors.glyphs_4_*.json")
    found = json.loads(path.read_text())
    assert [(run["connector"], run["seed"], run["tokens"]) for run in found["runs"]] == [
        (glyphs.QUESTION_ONLY, 0, 0), (glyphs.QUESTION_ONLY, 1, 0), ("sec", 0, 4), ("sec", 1, 4),
        ("mlp, all tokens", 0, 16), ("mlp, all tokens", 1, 16),
    ]  # fmt: skip
    assert {"recipe", "versions", "commit", "hardware", "date", "majority", "tower"} <= found.keys()
    assert str(photos) not in path.read_text()
    least = min(run["seconds"] for run in found["runs"] if run["tokens"])
    assert 0 < found["equal_seconds"] < least
    for run in found["runs"]:
        assert run["equal_time"].keys() == run["test"].keys() == {"read", "exist", "left", "count"}
        assert [point["step"] for point in run["curve"]] == [2, 4]
        assert 0 < run["curve"][0]["seconds"] < run["seconds"]
    monkeypatch.setattr(glyphs, "run_job", lambda *args: pytest.fail("run again"))
    monkeypatch.setattr(glyphs.Tower, "loss", lambda *args: pytest.fail("trained again"))
    call(glyphs, photos, tmp_path, *words)


def test_the_scenes_run_through_the_same_machinery(glyphs, shared, tmp_path):
    folder = shared / "data" / "nlvr2k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    call(glyphs, folder, tmp_path, "--task", "scenes", "--only", "sec", "--seeds", "0")
    (path,) = tmp_path.glob("connectors.scenes_4_*.json")
    found = json.loads(path.read_text())
    assert found["length"] == 6 * 24 and found["kinds"] == ["sentence"] and found["images"] == [24, 8]


def test_processes_that_share_the_jobs_leave_none_out_and_do_none_twice(glyphs, photos, tmp_path, monkeypatch):
    done = []

    def run_job(name, tokens, seed, splits, *rest):
        done.append((name, seed))
        shares = dict.fromkeys(splits[1].names, 0.0)
        return {
            "connector": name,
            "seed": seed,
            "tokens": tokens,
            "seconds": 1.0,
            "steps": 2,
            "test": shares,
            "curve": [{"step": 2, **shares}],
        }

    monkeypatch.setattr(glyphs, "run_job", run_job)
    monkeypatch.setattr(glyphs, "features_of", lambda *args: ())
    for part in ("0/2", "1/2"):
        call(glyphs, photos, tmp_path, "--part", part)
    names = [glyphs.QUESTION_ONLY, *glyphs.CONNECTORS]
    assert sorted(done) == sorted((name, seed) for name in names for seed in range(3))


def test_the_picture_of_the_task_is_drawn(glyphs, photos, tmp_path):
    call(glyphs, photos, tmp_path, "--picture", str(tmp_path / "task.png"))
    assert (tmp_path / "task.png").read_bytes().startswith(b"\x89PNG")
