"""Between stem and stages a caller may change the tokens: what masked pre-training does."""

import copy

import pytest
import timm
import torch


@pytest.mark.parametrize(("stem_stride", "size"), [(2, (40, 33)), (4, (64, 96)), (4, (1, 1))])
def test_stem_then_stages_are_forward_features(stem_stride, size):
    model = timm.create_model("secvit_nano", stem_stride=stem_stride).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        tokens = model.forward_stem(x)
        assert tuple(tokens.shape[2:]) == tuple(-(-s // stem_stride) for s in size)
        assert tokens.shape[1] == model.feature_info[0]["num_chs"]
        assert torch.equal(model.forward_stages(tokens), model.forward_features(x))
        assert torch.equal(model.forward_stages(tokens.contiguous()), model.forward_features(x))


def test_seam_survives_pruning():
    model = timm.create_model("secvit_nano").eval()
    x, pruned = torch.randn(1, 3, 32, 32), copy.deepcopy(model)
    pruned.prune_intermediate_layers([1])
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert torch.equal(pruned.forward_stages(pruned.forward_stem(x)), maps[1])
