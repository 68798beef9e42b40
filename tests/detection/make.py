"""A small COCO-format folder: squares and triangles on noise."""

import json

import numpy as np
from PIL import Image


def coco_folder(root, images=4, side=64, splits=("train", "val")):
    random = np.random.default_rng(0)
    for split in splits:
        (root / split).mkdir(parents=True)
        entries, objects = [], []
        for i in range(images):
            pixels = random.integers(0, 60, (side, side + 16, 3), dtype=np.uint8)
            for kind in (3, 7):
                x, y = (int(v) for v in random.integers(2, side - 24, 2))
                polygon = [x, y, x + 20, y, x + 20, y + 20, x, y + 20] if kind == 3 else [x, y, x + 20, y, x, y + 20]
                pixels[y : y + 20, x : x + 20, kind % 3] = 255
                objects.append(
                    {"id": len(objects) + 1, "image_id": i + 10, "category_id": kind, "bbox": [x, y, 20, 20],
                     "segmentation": [polygon], "area": 400 if kind == 3 else 200, "iscrowd": 0}
                )  # fmt: skip
            Image.fromarray(pixels).save(root / split / f"{i}.png")
            entries.append({"id": i + 10, "file_name": f"{i}.png", "width": side + 16, "height": side})
        write(root, split, entries, objects)
    return root


def write(root, split, images, annotations):
    categories = [{"id": 7, "name": "triangle"}, {"id": 3, "name": "square"}]
    (root / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def edit(root, split, change):
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
