"""You learn to train on your own images, and to change a recipe.

    python 04_train_your_folder.py [FOLDER]

FOLDER holds FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or only FOLDER/CLASS/*.jpg (a
part is then held out).  Without it, scikit-learn's 1,797 handwritten digits.  Only sixteen steps, so
that you see the whole way quickly: take `steps=None, epochs=8` for a result.  In a terminal:
    secvit train classification.digits --data FOLDER --output runs/mine --loop.epochs 8
"""

import sys
from dataclasses import replace
from pathlib import Path

import timm
from safetensors.torch import load_file

from secvit.classification import train
from secvit.classification.recipes import digits
from secvit.draw.curves import draw_curves

data = sys.argv[1] if len(sys.argv) > 1 else "digits"
output = Path("runs/mine")

# a recipe is data: replace what you want, keep the rest
recipe = digits()
recipe = replace(
    recipe,
    optim=replace(recipe.optim, lr=2e-3),
    loop=replace(recipe.loop, epochs=None, steps=16, log_every=4, evaluate_every=8, save_every=8, ema_decay=0.0),
)

# stop it at any moment: the same command goes on from the last checkpoint
result = train(recipe, data, output)
print(f"held-out top-1 {100 * result['top1']:.1f} %", end=", ")
print(f"always the most frequent class {100 * result['majority_floor']:.1f} %")
print("wrote", draw_curves(output / "log.csv", output / "curves.png"))

# the weights are an ordinary timm checkpoint
weights = load_file(output / "model.safetensors")
classes = weights["head.fc.weight"].shape[0]
model = timm.create_model(
    recipe.model.name,
    num_classes=classes,
    checkpoint_path=str(output / "model.safetensors"),
    **recipe.model.args,
)
print("loaded a network of", classes, "classes with timm")
