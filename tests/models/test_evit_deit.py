"""EViT-DeiT: DeiT that drops tokens."""

import pytest
import timm
import torch

from secvit.measure import count_macs
from secvit.models.evit_deit import reorganise

SMALL = {"img_size": 64, "embed_dim": 48, "depth": 5, "num_heads": 4}


def test_work_and_size_are_those_of_table_1():
    model = timm.create_model("evit_deit_small", device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(22, abs=0.1)
    assert count_macs(model).total / 1e9 == pytest.approx(4.0, abs=0.15)


def test_with_all_tokens_it_is_deit():
    torch.manual_seed(0)
    deit = timm.create_model("deit_small_patch16_224", num_classes=5, **SMALL).eval()
    x = torch.randn(2, 3, 64, 64)
    for keep_rate, same in ((1.0, True), (0.7, False)):
        evit = timm.create_model("evit_deit_small", num_classes=5, keep_rate=keep_rate, **SMALL).eval()
        evit.load_state_dict(deit.state_dict())
        with torch.no_grad():
            assert torch.allclose(evit(x), deit(x), atol=1e-6) == same


def test_tokens_that_cls_attends_to_stay_and_the_others_become_their_weighted_sum():
    x = torch.arange(6.0)[None, :, None] * torch.ones(1, 6, 2)  # token i has the value i; 0 is [cls]
    attention = torch.tensor([[0.3, 0.1, 0.25, 0.05, 0.2]])
    assert reorganise(x, attention, 3)[0, :, 0].tolist() == pytest.approx([0, 1, 3, 5, 0.1 * 2 + 0.05 * 4])


def test_each_pruning_block_leaves_the_tokens_of_its_rate():
    model, lengths = timm.create_model("evit_deit_small", depth=10, embed_dim=48, num_heads=4).eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, out: lengths.append(out.shape[1]))
    model(torch.zeros(1, 3, 224, 224))
    assert lengths == [197] * 3 + [179] * 3 + [163] * 3 + [148]  # 1 + ceil(.9 (n - 1)) + 1


def test_it_has_no_maps():
    with pytest.raises(RuntimeError, match="not suit"):
        timm.create_model("evit_deit_small", features_only=True)


def test_a_keep_rate_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="keep_rate=0"):
        timm.create_model("evit_deit_small", keep_rate=0)
