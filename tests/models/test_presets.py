"""Names and sizes of the SECViT family (SPEC section 2; supplement table 1)."""

import re

import pytest
import timm
import torch

import secvit
from secvit.ops import PARTITIONS

PARAMETERS = {
    "secvit_tiny": 14_981_800,
    "secvit_small": 26_822_056,
    "secvit_base": 57_345_176,
    "secvit_large": 100_642_296,
    "secvit_xlarge": 218_931_560,
    "secvit_small_release": 26_776_104,
    "secvit_base_release": 54_682_776,
    "secvit_large_release": 96_495_096,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_to_the_unit(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    scaled = {int(key.split(".")[1]) for key in model.state_dict() if ".ls1." in key}
    assert scaled == (set() if "tiny" in name or "small" in name else {2, 3})


def test_nano_has_two_million_parameters():
    model = timm.create_model("secvit_nano", device="meta")
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 3e6
    assert model.num_classes == 10


def test_timm_lists_the_family():
    assert set(timm.list_models("secvit_*")) == {*PARAMETERS, "secvit_nano"}
    assert timm.list_models(module="secvit") == timm.list_models("secvit_*")
    assert isinstance(timm.create_model("secvit_nano", device="meta"), secvit.models.SECViT)


def test_layer_scale_starts_at_a_millionth():
    model = timm.create_model("secvit_nano", layer_scale=(False, False, True, True))
    assert (model.stages[2].blocks[0].ls1.gamma == 1e-6).all()


def test_weights_start_as_the_paper_says():
    model = timm.create_model("secvit_tiny")
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            # a truncated normal of std 0.02; 3 sigma of the std of the smallest weight, 288 numbers
            assert abs(parameter.std() - 0.02) < 0.004, name
        else:
            assert (parameter == float(name.endswith("weight"))).all(), name


def test_drop_path_grows_linearly_to_the_last_block():
    model = timm.create_model("secvit_tiny", drop_path_rate=0.14)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.14 * i / 14 for i in range(15)])


def test_clusters_are_32_8_2_and_1_at_every_resolution():
    model = timm.create_model("secvit_tiny", device="meta")
    for tokens in (3136, 50_000):
        assert [stage.blocks[0].attn.clustering.clusters_for(tokens) for stage in model.stages] == [32, 8, 2, 1]
    assert model.stages[0].blocks[0].attn.clustering.clusters_for(7) == 7


def test_cluster_size_fixes_the_size_instead_of_the_count():
    model = timm.create_model("secvit_tiny", cluster_size=98, device="meta")
    grids = [56 * 56, 28 * 28, 14 * 14, 7 * 7]
    clusters = [stage.blocks[0].attn.clustering.clusters_for(n) for stage, n in zip(model.stages, grids)]
    assert clusters == [32, 8, 2, 1]
    assert model.stages[0].blocks[0].attn.clustering.clusters_for(200 * 320) == 654
    assert model.stages[3].blocks[0].attn.clustering.clusters_for(25 * 40) == 1


def test_cluster_size_98_is_the_same_network_at_224_px():
    count, size = (
        timm.create_model("secvit_nano", stem_stride=4, **k).eval()
        for k in ({"num_clusters": (32, 8, 2)}, {"cluster_size": 98})
    )
    size.load_state_dict(count.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(count(x), size(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": (8, 2, 1), "cluster_size": 49}, "num_clusters=(8, 2, 1) and cluster_size=49; give one"),
        ({"num_clusters": 8}, "num_clusters=8; give three numbers >= 1"),
        ({"num_clusters": (8, 2)}, "num_clusters=(8, 2); give three numbers >= 1"),
        ({"num_clusters": (8, 0, 1)}, "num_clusters=(8, 0, 1); give three numbers >= 1"),
        ({"cluster_size": 0}, "cluster_size=0; choose cluster_size >= 1"),
        ({"partition": "dbscan"}, "partition='dbscan'; choose one of " + ", ".join(PARTITIONS)),
        ({"stem_stride": 3}, "stem_stride=3; choose 4, or 2 for small images"),
        ({"num_heads": (3, 2, 4, 8)}, "32 channels cannot be shared by 3 heads"),
        ({"num_heads": (16, 2, 4, 8)}, "2 channels per head; 2-D rotary positions need a multiple of 4"),
    ],
)
def test_wrong_arguments_name_the_value_and_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        timm.create_model("secvit_nano", device="meta", **arguments)
