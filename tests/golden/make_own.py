"""Write own.json: numbers of our own networks, filled by the rule of stream.py through the converter, in float64.

They guard the networks where the authors' numbers (shared/golden) are not at hand.  Run from the repository root
    python -m tests.golden.make_own
and say in the commit why they changed.
"""

import json
import zlib
from pathlib import Path

import timm
import torch
from torch import nn

import secvit  # noqa: F401  registers the models
from secvit.models import convert
from tests.golden.stream import fill, image

OWN = Path(__file__).parent / "own.json"
RUNS = {"secvit_nano": [(2, 32, 32), (1, 33, 65)], "secvit_tiny": [(1, 64, 64), (1, 75, 100)]}


def filled(name: str) -> nn.Module:
    """The model with the weights of the fill rule, in the authors' layout, loaded through the converter."""
    network = timm.create_model(name).double().eval()
    heads = convert.heads_of(network)
    shapes = convert.to_authors(network.state_dict(), heads)
    state = {key: fill(key, tuple(value.shape)) for key, value in shapes.items() if not key.endswith(".angle")}
    network.load_state_dict(convert.from_authors(state, heads))
    return network


def measure(network: nn.Module, size: tuple[int, int, int]) -> dict:
    """Logits, features and partitions of one image batch, few numbers each, and the norm of the input's gradient."""
    orders: list[int] = []

    def note_order(attn, arguments):
        orders.append(zlib.crc32(attn.plan(*arguments).order.numpy().tobytes()))

    hooks = [s.blocks[0].attn.register_forward_pre_hook(note_order) for s in network.stages]
    x = image(*size).double().requires_grad_()
    final, maps = network.forward_intermediates(x)
    logits = network.forward_head(final)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    for hook in hooks:
        hook.remove()
    return {
        "logits": logits.detach().flatten()[:8].tolist(),
        "logits_mean_std": [logits.mean().item(), logits.std(unbiased=False).item()],
        "stages_mean_std": [[m.mean().item(), m.std(unbiased=False).item()] for m in maps],
        "order_crc32": orders,
        "input_gradient_norm": gradient.norm().item(),
    }


def label(size: tuple[int, int, int]) -> str:
    return "{}x3x{}x{}".format(*size)


if __name__ == "__main__":
    networks = {name: filled(name) for name in RUNS}
    numbers = {name: {label(s): measure(networks[name], s) for s in sizes} for name, sizes in RUNS.items()}
    OWN.write_text(json.dumps(numbers, indent=1) + "\n")
