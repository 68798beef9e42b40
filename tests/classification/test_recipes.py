"""The recipes: their numbers, their tiny twins, what they start from."""

import re
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

from secvit.classification import ClassificationTask, recipes, tiny, train
from secvit.classification.config import Model, Recipe
from secvit.classification.training import initial_model
from secvit.models.saved import load_model
from secvit.models.secvit import clusters_at_224
from secvit.models.small import HALF_WIDTH
from secvit.ops.partitions import SCORES
from secvit.recipes import of as recipes_of
from secvit.train.config import Schedule
from secvit.train.optim import create_optimizer
from secvit.weights import load_backbone, weight_bytes
from tests.conftest import slow_but

RECIPES = {name: make() for name, make in recipes_of(recipes).items()}
LARGER = re.compile("_base|_large|_xlarge|_small_release|table10.*_(196|24|64)_")  # the same way with more weights
IMAGENET = {name: r for name, r in RECIPES.items() if name.startswith(("imagenet_", "table10_"))}
SIMMIM = {name for name in IMAGENET if name.endswith("_simmim")}
SCRATCH = IMAGENET.keys() - SIMMIM


def small(recipe: Recipe, **changes) -> Recipe:
    recipe = tiny(recipe)
    return replace(recipe, loop=replace(recipe.loop, device="cpu", **{"steps": 1, **changes}))


@pytest.mark.parametrize("name", slow_but([name for name in RECIPES if not LARGER.search(name)], RECIPES))
def test_tiny_twin_of_a_recipe_runs(tmp_path, name):
    result = train(small(RECIPES[name]), "digits", tmp_path)
    assert result["steps"] == 1 and 0 <= result["top1"] <= 1 and "top-1" in result["summary"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is(name):
    assert len((getattr(recipes, name).__doc__ or "").splitlines()[0]) > 30


def test_there_is_a_recipe_for_every_secvit_of_the_paper():
    presets = {name for name in timm.list_models("sec*_*") if name != "secvit_nano"}
    rivals = {"deit_small", "deit_base", "swin_tiny", "swin_small", "swin_base", "evit_deit_small"}
    names = {r.model.name.replace("_patch16_224", "").replace("_patch4_window7_224", "") for r in IMAGENET.values()}
    assert names == presets | rivals


@pytest.mark.parametrize("name", sorted(SCRATCH))
def test_imagenet_recipes_have_deits_numbers(name):
    """The paper's section 4.1 and the authors' training logs."""
    r = IMAGENET[name]
    assert (r.loop.epochs, r.loop.batch_size, r.model.image_size) == (300, 2048, 224)
    assert (r.optim.name, r.optim.lr, r.optim.weight_decay) == ("adamw", 2e-3, 0.05)
    assert (r.schedule.kind, r.schedule.warmup_epochs) == ("cosine", 5)
    assert (r.schedule.warmup_lr, r.schedule.min_lr) == (1e-6, 1e-5)
    assert (r.augment.mixup, r.augment.cutmix, r.augment.erase) == (0.8, 1.0, 0.25)
    assert (r.augment.auto, r.augment.crop, r.label_smoothing) == ("rand-m9-mstd0.5-inc1", "resized", 0.1)
    assert r.loop.repeats == 3 and r.loop.ema_decay == pytest.approx(0.99996 ** (2048 / 512), abs=5e-7)
    assert r.sync_norm and r.loop.score_plain


@pytest.mark.parametrize("sec, other", [("sec_swin_tiny", "swin_tiny"), ("sec_swin_small", "swin_small"),
                                        ("sec_deit_small", "deit_small"), ("sec_deit_base", "deit_base"),
                                        ("sec_swin_base_simmim", "swin_base_simmim")])  # fmt: skip
def test_a_baseline_differs_in_the_network_alone(sec, other):
    ours, baseline = RECIPES[f"imagenet_{sec}"], RECIPES[f"imagenet_{other}"]
    assert replace(baseline, model=replace(baseline.model, name=ours.model.name)) == ours


@pytest.mark.parametrize("name", sorted(SIMMIM))
def test_fine_tuning_has_simmims_numbers(name):
    """Its released configuration for Swin-B, and mmselfsup's swin-base_ft-8xb256-coslr-100e."""
    r = IMAGENET[name]
    assert (r.loop.epochs, r.loop.batch_size, r.loop.clip_grad, r.loop.repeats) == (100, 2048, 5.0, 1)
    assert (r.optim.lr, r.optim.layer_decay, r.optim.weight_decay) == (1.25e-3 * 2048 / 512, 0.9, 0.05)
    assert (r.schedule.warmup_epochs, r.schedule.warmup_lr) == (20, 2.5e-7 * 2048 / 512)
    assert r.model.args["drop_path_rate"] == 0.1 and r.loop.ema_decay == 0


@pytest.mark.parametrize("name", sorted(SIMMIM))
def test_pre_trained_weights_begin_the_fine_tuning(tmp_path, name):
    from secvit.simmim import recipes as simmim
    from secvit.simmim import train as pre_train

    masked = simmim.tiny(getattr(simmim, name.removesuffix("_simmim"))())
    masked = replace(masked, loop=replace(masked.loop, device="cpu", steps=1, batch_size=2))
    pre_train(masked, "digits", tmp_path / "masked")
    recipe = small(RECIPES[name])
    args = {**recipe.model.args, **masked.model.args}
    recipe = replace(recipe, model=replace(recipe.model, init=str(tmp_path / "masked"), args=args))
    state, begun = (
        load_file(tmp_path / "masked/model.safetensors"),
        initial_model(recipe, list("0123456789")).state_dict(),
    )
    assert len(state) > 30 and all(torch.equal(begun[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("size", "rate"), [("tiny", 0.1), ("small", 0.15), ("base", 0.4), ("large", 0.5), ("xlarge", 0.5)]
)
def test_drop_path_is_that_of_the_size(size, rate):
    assert RECIPES[f"imagenet_secvit_{size}"].model.args == {"drop_path_rate": rate}


@pytest.mark.parametrize(("tokens", "clusters"), [(196, (16, 4, 1)), (98, (32, 8, 2)), (49, (64, 16, 4))])
def test_table_10_varies_the_tokens_per_cluster(tokens, clusters):
    chosen = RECIPES["imagenet_secvit_tiny" if tokens == 98 else f"table10_{tokens}_tokens"].model
    model = timm.create_model(chosen.name, device="meta", **chosen.args)
    found = [
        stage.blocks[0].attn.clustering.clusters_for(n)
        for stage, n in zip(model.stages, (3136, 784, 196), strict=False)
    ]
    assert tuple(found) == clusters == clusters_at_224(tokens)


# -- the pieces are those of timm ------------------------------------------------------------------


def test_learning_rate_is_that_of_timms_cosine():
    from timm.scheduler import CosineLRScheduler

    from secvit.train import learning_rate

    schedule = Schedule(warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    timms = CosineLRScheduler(optimizer, 3000, lr_min=1e-5, warmup_t=50, warmup_lr_init=1e-6, t_in_epochs=False)
    for step in range(3000):
        timms.step_update(step)
        assert learning_rate(step, 3000, 2e-3, schedule, 10) == pytest.approx(optimizer.param_groups[0]["lr"], 1e-9)


def test_averaged_weights_are_those_of_timms_ema():
    from timm.utils import ModelEmaV3

    from secvit.train.ema import Ema

    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    ours, timms = Ema(model, 0.9), ModelEmaV3(model, decay=0.9, foreach=False)
    for _ in range(5):
        torch.nn.init.normal_(model[0].weight)
        model(torch.randn(4, 3))
        ours.update(model, 0)
        timms.update(model)
    for mine, other in zip(ours.model.state_dict().values(), timms.module.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other)


def test_repeated_augmentation_shares_repeats_as_timms_sampler():
    """Three copies in a row, dealt out to the processes one by one."""
    from secvit.train.sampler import Keys

    parts = [
        [k % 12 for part in Keys(12, 12, seed=0, start=0, stop=1, repeats=3, rank=r, processes=3) for k in part]
        for r in range(3)
    ]
    assert parts[0] == parts[1] == parts[2] and len(set(parts[0])) == 4


# -- starting from weights -------------------------------------------------------------------------


def test_layer_decay_lowers_the_rate_towards_the_input():
    model = timm.create_model("secvit_nano")
    optimizer = create_optimizer(model, RECIPES["finetune"].optim)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    order = [model.stem[0].weight, *(s.blocks[0].ffn.fc1.weight for s in model.stages), model.head.fc.weight]
    scales = [scale[id(p)] for p in order]
    assert scales == sorted(scales) and scales[0] < 0.3 and scales[-1] == 1


def test_finetuning_starts_from_the_backbone_with_a_new_head(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("secvit_nano", num_classes=7, **HALF_WIDTH)
    (tmp_path / "w.safetensors").write_bytes(weight_bytes(model.state_dict()))
    other = timm.create_model("secvit_nano", num_classes=10, **HALF_WIDTH)
    fresh = {k: v.clone() for k, v in other.state_dict().items()}
    assert load_backbone(other, tmp_path / "w.safetensors") == ["head.fc.bias", "head.fc.weight"]
    for key, value in other.state_dict().items():
        wanted = fresh if key.startswith("head.fc") else model.state_dict()
        assert torch.equal(value, wanted[key]), key


def test_weights_of_another_backbone_are_refused(tmp_path):
    model = timm.create_model("secvit_nano", **HALF_WIDTH)
    (tmp_path / "w.safetensors").write_bytes(weight_bytes(model.state_dict()))
    with pytest.raises(ValueError, match="does not fit SECViT without its head"):
        load_backbone(timm.create_model("secvit_nano"), tmp_path / "w.safetensors")


def test_frozen_parts_stay_as_they_were_statistics_included(tmp_path):
    recipe = small(RECIPES["digits"], steps=3, ema_decay=0.0)
    start = train(replace(recipe, loop=replace(recipe.loop, steps=1)), "digits", tmp_path / "start")
    assert start["steps"] == 1
    model = replace(recipe.model, init=str(tmp_path / "start"), frozen=("stem", "stages.0"))
    train(replace(recipe, model=model), "digits", tmp_path / "frozen")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("start", "frozen"))
    kept = [k for k in before if k.startswith(("stem", "stages.0"))]
    assert all(torch.equal(before[k], after[k]) for k in kept) and any("running" in k for k in kept)
    assert not torch.equal(before["stages.1.blocks.0.ffn.fc1.weight"], after["stages.1.blocks.0.ffn.fc1.weight"])


def test_a_part_that_does_not_exist_cannot_be_frozen():
    model = timm.create_model("secvit_nano", **HALF_WIDTH)
    with pytest.raises(ValueError, match="frozen='neck' is no part of SECViT; its parts are stem, stages, head"):
        ClassificationTask(model, frozen=("neck",))


def test_pretrained_and_init_together_are_refused(tmp_path):
    recipe = small(RECIPES["digits"])
    both = replace(recipe, model=replace(recipe.model, pretrained=True, init="x"))
    with pytest.raises(ValueError, match="give one of them"):
        train(both, "digits", tmp_path)


def test_odd_batches_cannot_be_mixed(tmp_path):
    recipe = small(RECIPES["imagenet_secvit_tiny"], batch_size=7)
    with pytest.raises(ValueError, match="choose an even"):
        train(recipe, "digits", tmp_path)


def test_a_patched_run_is_scored_patched(tmp_path):
    """Weights alone do not say that attention was clustered; config.yaml does."""
    result = train(small(RECIPES["cifar10_vit_patched"]), "digits", tmp_path)
    model = load_model(result["model"], tmp_path)
    assert model.secvit_patch.clustering.num_clusters == 4
    assert set(model.state_dict()) == set(load_file(tmp_path / "model.safetensors"))


def test_a_recipe_holds_a_partition_by_its_name(monkeypatch):
    def own(tokens, *_):
        return tokens.sum(dim=-1)

    for place in ("args", "patch"):
        with pytest.raises(ValueError, match=r"partition=own is a function.*secvit\.register_partition\("):
            Model(**{place: {"partition": own}})
        monkeypatch.setitem(SCORES, "own_name", own)
        assert getattr(Model(**{place: {"partition": own}}), place) == {"partition": "own_name"}
        monkeypatch.delitem(SCORES, "own_name")


def test_a_tiny_run_of_simmim_begins_a_tiny_run_of_classification():
    import secvit.simmim.recipes as masked

    first, then = masked.tiny(masked.folder()).model, tiny(recipes.folder()).model
    assert first.name == then.name and {**then.args, **first.args} == {**then.args, "stem_stride": 4}
