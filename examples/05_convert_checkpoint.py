"""You learn to load the authors' released weights.

    python 05_convert_checkpoint.py [AUTHORS.pth]

Their files name and shape some tensors differently; converting is exact, both ways.  Without a file
this makes one in their layout, from random weights, so that you can see it work.  In a terminal:
    secvit convert AUTHORS.pth secvit.safetensors --model secvit_small_release
"""

import sys

import timm
import torch

import secvit  # noqa: F401  registers the models with timm
from secvit.models.convert import convert, heads_of, to_authors

NAME = "secvit_small_release"  # the presets *_release follow the authors' code, the others the paper

if len(sys.argv) > 1:
    source = sys.argv[1]
else:
    source = "authors.pth"
    torch.manual_seed(0)
    original = timm.create_model(NAME).eval()
    torch.save({"model": to_authors(original.state_dict(), heads_of(original))}, source)

count = convert(source, "secvit.safetensors", NAME)
print(f"converted {count} tensors of {source}")

model = timm.create_model(NAME, checkpoint_path="secvit.safetensors").eval()
image = torch.randn(1, 3, 64, 64)
with torch.inference_mode():
    logits = model(image)
    print("class", int(logits.argmax()), "of", logits.shape[1])
    if len(sys.argv) == 1:
        print("same logits as before:", torch.equal(logits, original(image)))

# a preset that does not fit says so, and which one does
try:
    convert(source, "wrong.safetensors", "secvit_base_release")
except ValueError as error:
    print("\n".join(str(error).splitlines()[:2]))
