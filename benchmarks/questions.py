"""Images and questions whose answer is one word: digits placed on photographs, and the scenes of NLVR."""

import itertools
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from secvit.draw.picture import new_figure, save
from secvit.images import EXTENSIONS, read_image

Box = tuple[float, float, float, float]  # x, y, x, y in px
Thing = tuple[Box, int, int]  # and its symbol and colour, or shape and colour, as numbers from 0
COLOURS = {
    "red": (235, 50, 50), "green": (60, 200, 70), "blue": (70, 110, 255),
    "yellow": (245, 225, 60), "pink": (250, 120, 220), "white": (255, 255, 255),
    "orange": (255, 150, 30), "cyan": (60, 230, 235),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Sizes and steps; the defaults are for about an hour of one CPU core.

    image, patch, font: pixels.  glyphs, font: least and most.
    """

    image: int = 64
    patch: int = 8
    font: tuple[int, int] = (16, 20)
    glyphs: tuple[int, int] = (2, 4)
    alphabet: str = "0123456789"
    colours: int = 6
    train_images: int = 16000
    test_images: int = 1500
    tower_dim: int = 64
    tower_depth: int = 3
    tower_steps: int = 1500
    tower_lr: float = 2e-3
    dim: int = 64
    depth: int = 2
    steps: int = 1200
    batch: int = 64
    lr: float = 3e-3
    decay: float = 0.2  # the last part of the steps, in which the learning rate falls to zero
    evaluations: int = 10


@dataclass
class Split:
    """Images, what is in each patch (for the tower), questions and answers (for the language model).

    pixels (n, 3, H, W) uint8; cells (n, L, 2): symbol and colour of each patch, 0 for none; present (n, symbols);
    words (n, questions, length), 0 where there is none; answers (n, questions); kinds (n, questions): in `names`.
    """

    pixels: Tensor
    cells: Tensor
    present: Tensor
    words: Tensor
    answers: Tensor
    kinds: Tensor
    names: tuple[str, ...]
    vocabulary: tuple[str, ...]
    colours: int


def majority(split: Split) -> dict[str, float]:
    """Share of the most frequent answer to each kind of question."""
    counts = [split.answers[split.kinds == i].bincount() for i in range(len(split.names))]
    return {name: float(count.max() / count.sum()) for name, count in zip(split.names, counts, strict=True)}


def overlap(one: Box, other: Box) -> float:
    """Pixels that two boxes share."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return max(width, 0) * max(height, 0)


def cells_of(things: Sequence[Thing], size: tuple[int, int], patch: int) -> list[tuple[int, int]]:
    """Both numbers, from 1, of the thing that covers most of each patch, if it covers a quarter of it; else zeros."""
    height, width = size
    found = []
    for y, x in itertools.product(range(0, height, patch), range(0, width, patch)):
        place = (x, y, x + patch, y + patch)
        area, first, second = max(((overlap(place, box), *numbers) for box, *numbers in things), default=(0, 0, 0))
        found.append((first + 1, second + 1) if area >= patch * patch / 4 else (0, 0))
    return found


# -- digits on photographs -----------------------------------------------------------------------------

Glyph = tuple[str, str, Box]  # symbol, colour, place


def photos_of(folder: Path, split: str, short_side: int) -> list[Image.Image]:
    """The photos of one split, from its own folder or by a fixed fifth held out for "val", made smaller."""
    inside = folder / split if (folder / split).is_dir() else folder
    paths = sorted(path for path in inside.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if inside == folder:
        paths = [path for number, path in enumerate(paths) if (number % 5 == 0) == (split == "val")]
    if not paths:
        raise ValueError(f"{inside}: no photos for {split}; give a folder of images, or one with train/ and val/")
    photos = [read_image(path) for path in paths]
    return [ImageOps.cover(photo, (short_side, short_side)) for photo in photos]


def glyph_split(folder: Path, split: str, recipe: Recipe, seed: int) -> Split:
    """Crops of photos with glyphs on them, and seven questions each: two read, exist and left, one count."""
    rng = random.Random(seed)
    photos = photos_of(folder, split, 4 * recipe.image)
    count = recipe.train_images if split == "train" else recipe.test_images
    numbers = [str(number) for number in range(recipe.glyphs[0], recipe.glyphs[1] + 1)]
    names, colours = ("read", "exist", "left", "count"), list(COLOURS)[: recipe.colours]
    vocabulary = tuple(dict.fromkeys(["", *names, "all", "yes", "no", *colours, *recipe.alphabet, *numbers]))
    number_of = {word: number for number, word in enumerate(vocabulary)}
    pixels, cells, present, words, answers = [], [], [], [], []
    for _ in range(count):
        image, glyphs = glyph_image(rng.choice(photos), recipe, rng)
        asked = questions(glyphs, recipe, rng)
        pixels.append(np.asarray(image))
        things = [(box, recipe.alphabet.index(symbol), colours.index(colour)) for symbol, colour, box in glyphs]
        cells.append(cells_of(things, (recipe.image, recipe.image), recipe.patch))
        present.append([float(symbol in {glyph[0] for glyph in glyphs}) for symbol in recipe.alphabet])
        words.append([[number_of[word] for word in said] for said, _ in asked])
        answers.append([number_of[answer] for _, answer in asked])
    kinds = [names.index(kind[0]) for kind, _ in asked]
    return Split(
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(cells),
        torch.tensor(present), torch.tensor(words), torch.tensor(answers), torch.tensor([kinds] * count),
        names, vocabulary, recipe.colours,
    )  # fmt: skip


def glyph_image(photo: Image.Image, recipe: Recipe, rng: random.Random) -> tuple[Image.Image, list[Glyph]]:
    """A random square of a photo, and glyphs of different colours that do not touch each other."""
    side = rng.uniform(0.4, 1) * min(photo.size)
    x, y = (rng.uniform(0, edge - side) for edge in photo.size)
    image = photo.resize((recipe.image, recipe.image), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    pen = ImageDraw.Draw(image)
    glyphs: list[Glyph] = []
    for colour in rng.sample(list(COLOURS)[: recipe.colours], rng.randint(*recipe.glyphs)):
        symbol, font = rng.choice(recipe.alphabet), font_of(rng.randint(*recipe.font))
        left, top, right, bottom = pen.textbbox((0, 0), symbol, font, stroke_width=1)
        while True:
            x, y = (rng.randint(0, int(recipe.image - edge)) for edge in (right - left, bottom - top))
            box = (x, y, x + right - left, y + bottom - top)
            if not any(overlap(box, other) for _, _, other in glyphs):
                break
        pen.text((x - left, y - top), symbol, COLOURS[colour], font, stroke_width=1, stroke_fill=(0, 0, 0))
        glyphs.append((symbol, colour, box))
    return image, glyphs


font_of = cache(ImageFont.load_default)  # pixels -> Pillow's own font


def questions(glyphs: Sequence[Glyph], recipe: Recipe, rng: random.Random) -> list[tuple[tuple[str, str], str]]:
    """Seven questions of two words with their answers of one; "exist" is yes once and no once."""
    here = [symbol for symbol, _, _ in glyphs]
    absent = [symbol for symbol in recipe.alphabet if symbol not in here]
    asked = [(("read", colour), symbol) for symbol, colour, _ in _two(glyphs, rng)]
    asked += [(("exist", rng.choice(here)), "yes"), (("exist", rng.choice(absent)), "no")]
    for _, colour, box in _two(glyphs, rng):
        asked.append((("left", colour), "yes" if box[0] + box[2] < recipe.image else "no"))
    return [*asked, (("count", "all"), str(len(glyphs)))]


def _two(glyphs: Sequence[Glyph], rng: random.Random) -> list[Glyph]:
    return rng.sample(glyphs, 2) if len(glyphs) > 1 else [glyphs[0]] * 2


def draw_task(folder: Path, recipe: Recipe, path: Path) -> Path:
    """Four images with their questions and answers."""
    rng = random.Random(4)
    photos = photos_of(folder, "val", 4 * recipe.image)
    figure = new_figure(10, 3.9)
    for number in range(4):
        image, glyphs = glyph_image(photos[number % len(photos)], recipe, rng)
        axes = figure.add_axes((0.01 + 0.25 * number, 0.4, 0.23, 0.59))
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        lines = [f"{' '.join(words) + '?':13} {answer}" for words, answer in questions(glyphs, recipe, rng)]
        axes.text(0, -0.06, "\n".join(lines), transform=axes.transAxes, va="top", family="monospace", fontsize=10)
    return save(figure, path)


# -- the scenes of NLVR ----------------------------------------------------------------------------

SHAPES, PAINTS = ("circle", "square", "triangle"), ("black", "yellow", "#0099ff")
SCENE = (48, 192)  # height and width in px


def scene_split(folder: Path, split: str, recipe: Recipe, seed: int) -> Split:
    """NLVR (Suhr et al. 2017): three boxes with shapes and a sentence that people wrote, true or false."""
    items = json.loads((folder / f"{split}_sentences.json").read_text())
    items = items[: recipe.train_images if split == "train" else recipe.test_images]
    with np.load(folder / f"{split}.npz") as stored:
        content, offset = stored["png"], stored["offset"]
    known = json.loads((folder / "train_sentences.json").read_text())
    vocabulary = tuple(dict.fromkeys(["", "?", "true", "false", *(w for item in known for w in _words(item))]))
    number_of = {word: number for number, word in enumerate(vocabulary)}
    length = max(len(_words(item)) for item in known)
    described = {item["id"]: item["structured_rep"] for item in items}
    pixels, cells, present, words = [], [], [], []
    for item in items:
        png = content[offset[item["image"]] : offset[item["image"] + 1]].tobytes()
        image = read_image(png, f"image {item['image']} of {split}.npz")
        pixels.append(np.asarray(image.resize(SCENE[::-1], Image.Resampling.BOX)))
        boxes = boxes_of(item, described)
        cells.append(cells_of(things_in(boxes, SCENE[1] / image.width), SCENE, recipe.patch))
        seen = {SHAPES.index(thing["type"]) for box in boxes for thing in box}
        present.append([float(shape in seen) for shape in range(len(SHAPES))])
        said = [number_of.get(word, 1) for word in _words(item)][:length]
        words.append([said + [0] * (length - len(said))])
    return Split(
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(cells),
        torch.tensor(present), torch.tensor(words), torch.tensor([[number_of[item["label"]]] for item in items]),
        torch.zeros(len(items), 1, dtype=torch.long), ("sentence",), vocabulary, len(PAINTS),
    )  # fmt: skip


def boxes_of(item: dict[str, Any], described: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What is in the three boxes; only the first of the six orders of boxes is described in the files."""
    example, _, number = item["id"].rpartition("-")
    boxes = described[f"{example}-0"]
    return [boxes[i] for i in list(itertools.permutations(range(3)))[int(number)]]


def _words(item: dict[str, Any]) -> list[str]:
    return re.findall(r"\w+", item["sentence"].lower())


def things_in(boxes: Sequence[Sequence[dict[str, Any]]], scale: float) -> list[Thing]:
    """The shapes of three boxes that are 50 px apart, in an image of so many times the size."""
    found = []
    for number, box in enumerate(boxes):
        for thing in box:
            x, y, size = 150 * number + thing["x_loc"], thing["y_loc"], thing["size"]
            place = (scale * x, scale * y, scale * (x + size), scale * (y + size))
            found.append((place, SHAPES.index(thing["type"]), PAINTS.index(thing["color"].lower())))
    return found


TASKS: dict[str, Callable[[Path, str, Recipe, int], Split]] = {"glyphs": glyph_split, "scenes": scene_split}
