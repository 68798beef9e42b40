"""Write llava.json: features of one small LLaVA, filled by the rule of stream.py, on one image, in float64.

They are the same under every version of transformers that pyproject.toml allows.  Run from the repository root
    python -m tests.golden.make_llava
and say in the commit why they changed.
"""

import json
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from secvit.vlm import SecLlavaConfig, SecLlavaForConditionalGeneration
from tests.golden.stream import fill, image

FILE = Path(__file__).parent / "llava.json"
LAYERS = {"last but one": -2, "two of them": [-2, 1]}


def features(layers: int | list[int]) -> dict:
    """What the connector makes of an image, few numbers of it: 36 patches of a CLIP tower become 4 tokens and [cls]."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=48, patch_size=8
    )
    text = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
    config = SecLlavaConfig(
        connector={"name": "sec", "num_tokens": 4, "extra_token": "cls"},
        vision_config=vision, text_config=text, vision_feature_layer=layers,
    )  # fmt: skip
    model = SecLlavaForConditionalGeneration(config).model.double().eval()
    model.load_state_dict(
        {
            # some versions have a vision_model inside the tower, some have not
            key: fill(key.replace("vision_model.", ""), tuple(value.shape)) if value.is_floating_point() else value
            for key, value in model.state_dict().items()
        }
    )
    with torch.no_grad():
        (tokens,) = model.get_image_features(image(1, 48, 48).double()).pooler_output
    flat = tokens.flatten()
    return {
        "shape": list(tokens.shape),
        "mean_std": [flat.mean().item(), flat.std().item()],
        "first": flat[:8].tolist(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: features(layers) for name, layers in LAYERS.items()}, indent=1) + "\n")
