import pytest
import timm
import torch
from timm.layers import LayerScale

import secvit  # noqa: F401  (registers the models)
from tests.measure.literal import literal_module


@pytest.mark.parametrize("name, size, scaled", [("secvit_nano", 32, True), ("secvit_tiny", 64, False)])
def test_our_network_equals_the_equations_written_out(name, size, scaled):
    ours = timm.create_model(name, layer_scale=(scaled,) * 4).eval()
    for module in ours.modules():
        if isinstance(module, LayerScale):
            torch.nn.init.uniform_(module.gamma, 0.25, 0.75)
    twin = literal_module().like(ours)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        in_float32 = (ours(images), twin(images))
        in_float64 = (ours.double()(images.double()), twin.double()(images.double()))
    # 1e-15 and 2e-6 were seen; one token in another cluster moves logits by 1e-3
    for (found, expected), tolerance in ((in_float64, 1e-10), (in_float32, 1e-5)):
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_gradients_equal_those_of_the_equations_written_out():
    ours = timm.create_model("secvit_nano").double().train()
    literal = literal_module()
    twin = literal.like(ours)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for network in (ours, twin):
        network(images).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()}
    heads = [stage.blocks[0].attn.num_heads for stage in ours.stages]
    found = literal.from_ours({name: parameter.grad for name, parameter in ours.named_parameters()}, heads)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)


def test_the_equations_refuse_what_they_do_not_cover():
    literal = literal_module()
    q = torch.randn(1, 1, 7, 4)
    with pytest.raises(ValueError, match="2 clusters do not divide 7 tokens"):
        literal.cluster_attention(q, q, q, 2)
    with pytest.raises(ValueError, match="no literal twin for cluster_size"):
        literal.like(timm.create_model("secvit_tiny", cluster_size=98, device="meta"))
