"""From a recipe and conversations to a LLaVA that transformers loads: whole, broken off, shared, in parts, by LoRA."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, CLIPImageProcessor, CLIPVisionModel

from secvit.cli import main
from secvit.files import read_csv
from secvit.recipes import of as recipes_of
from secvit.vlm import ask, load_connector, load_trained, recipes, train
from secvit.vlm.chat import Chat, prepare
from secvit.vlm.config import Model
from secvit.vlm.data import Conversations, load, read_samples, texts
from secvit.vlm.initial import from_parts, initial_llava, set_trained
from secvit.vlm.llava import SecLlavaForConditionalGeneration
from secvit.vlm.task import VlmTask, answers
from secvit.vlm.training import create_optimizer, evaluate
from tests.train.launch import train_on_one_and_on_two
from tests.vlm.make import folder

RECIPES = {name: make() for name, make in recipes_of(recipes).items()}
# small towers, so that a test takes seconds
TINY = {"image_size": 32, "patch_size": 4, "dim": 32, "vision_layers": 2}


def small(name="llava_finetune_7b", model=None, samples=None, **loop):
    recipe = recipes.tiny(RECIPES[name])
    model = replace(recipe.model, connector_args=TINY, **(model or {}))
    return replace(
        recipe, model=model, samples=replace(recipe.samples, **(samples or {})),
        loop=replace(recipe.loop, device="cpu", **loop),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("vlm") / "data", texts=0, follow_ups=False)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("vlm") / "mixed", count=9, texts=5, val=0)


@pytest.fixture(scope="module")
def stage1(tmp_path_factory, data):
    run = tmp_path_factory.mktemp("run") / "stage1"
    return train(small("llava_pretrain_7b"), data, run), run


def ready(recipe, data):
    """A task and its data, as `train` makes them."""
    file = data / "train.json"
    llava, processor = initial_llava(recipe.model, lambda: texts(read_samples(file)[0]))
    chat = Chat(prepare(processor, recipe.samples.template, True))
    dataset = Conversations(*(lambda s, n: (s, chat, n))(*load(file, recipe.samples, chat)), group=4)
    return VlmTask(set_trained(llava, recipe.model)), dataset


@pytest.mark.parametrize("name", RECIPES)
def test_tiny_twin_of_a_recipe_runs(tmp_path, data, name):
    result = train(small(name, steps=1), data, tmp_path / "run")
    assert result["steps"] == 1 and "val loss" in result["summary"] and 0 <= result["exact"] <= 1
    assert result["tokens_of_a_picture"] == 16 + (RECIPES[name].model.extra_token is not None)
    assert {"config.yaml", "result.json", "processor_config.json"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_recipes_have_llavas_numbers():
    for size in ("7b", "13b"):
        one, two = RECIPES[f"llava_pretrain_{size}"], RECIPES[f"llava_finetune_{size}"]
        assert [(r.loop.batch_size, r.optim.lr, r.loop.epochs) for r in (one, two)] == [(256, 1e-3, 1), (128, 2e-5, 1)]
        assert one.model.trained == ("connector",) and two.model.trained == ("connector", "language")
        assert (one.samples.template, two.samples.template) == ("plain", "v1")
        assert f"vicuna-{size}" in one.model.language and one.model == replace(two.model, trained=("connector",))
        for r in (one, two):
            assert (r.schedule.kind, r.schedule.warmup_epochs, r.optim.weight_decay) == ("cosine", 0.03, 0)
            assert (r.loop.precision, r.samples.max_length, r.loop.clip_grad) == ("bf16", 2048, 1.0)
            # pretrain.sh asks for neither squares nor groups, finetune.sh for both
            assert r.samples.pad == r.samples.group == (r is two)
    lora = RECIPES["llava_finetune_lora_7b"]
    assert (lora.model.lora, lora.model.lora_alpha, lora.optim.lr, lora.optim.connector_lr) == (128, 256, 2e-4, 2e-5)


# -- what a run leaves -------------------------------------------------------------------------


def test_a_run_of_stage_2_is_loaded_by_transformers(tmp_path, data):
    result = train(small(), data, tmp_path / "run")
    llava, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "run", output_loading_info=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    assert isinstance(llava, SecLlavaForConditionalGeneration) and not any(report.values()), report
    saved = load_file(tmp_path / "run/checkpoints/step_00000004/model.safetensors")
    assert not any("vision_tower" in key for key in saved)  # it is frozen
    own = llava.state_dict()
    assert all(torch.equal(own[key.removeprefix("llava.")], value) for key, value in saved.items())
    samples, lengths = load(data / "val.json", small().samples, Chat(processor))
    scored = evaluate(llava.eval(), Conversations(samples, Chat(processor), lengths))
    assert scored["loss"] == pytest.approx(result["loss"], rel=1e-5)  # the same sums in the same order, near enough


def test_stage_1_changes_the_connector_alone_and_stage_2_begins_with_it(tmp_path, data, stage1):
    result, run = stage1
    assert {"connector.json", "connector.safetensors"} <= {p.name for p in run.iterdir()}
    trained = load_file(run / "connector.safetensors")
    assert result["trained_parameters"] == sum(v.numel() for v in trained.values()) < result["parameters"]
    checkpoint = load_file(run / "checkpoints/step_00000004/model.safetensors")
    assert all("multi_modal_projector" in key for key in checkpoint)  # and no towers
    recipe = small(model={"init": str(run)})
    fresh, processor = initial_llava(small().model, lambda: texts(read_samples(data / "train.json")[0]))
    before = {k: v.clone() for k, v in fresh.model.multi_modal_projector.state_dict().items()}
    assert any(not torch.equal(before[k], trained[k]) for k in trained)
    load_connector(fresh, processor, run)
    second, _ = initial_llava(recipe.model, lambda: texts(read_samples(data / "train.json")[0]))
    for llava in (fresh, second):
        state = llava.model.multi_modal_projector.state_dict()
        assert all(torch.equal(state[k], trained[k]) for k in trained)
    assert train(replace(recipe, loop=replace(recipe.loop, steps=1)), data, tmp_path / "stage2")["steps"] == 1


# peft asks transformers by a name of before
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_is_merged_into_what_is_saved_and_kept_beside_it(tmp_path, data):
    from peft import PeftModel

    recipe = small("llava_finetune_lora_7b")
    recipe = replace(recipe, optim=replace(recipe.optim, lr=0.05, connector_lr=0.01))
    train(recipe, data, tmp_path / "run")
    merged, processor = load_trained(tmp_path / "run", "cpu")
    llava, _ = initial_llava(recipe.model, tokenizer=processor.tokenizer)
    dataset = Conversations(
        *(lambda s, n: (s, Chat(processor), n))(*load(data / "val.json", recipe.samples, Chat(processor)))
    )
    batch = dataset.__getitems__([0, 1])
    with torch.no_grad():
        base = answers(llava.eval(), batch)[0]
        with_adapter = answers(PeftModel.from_pretrained(llava, tmp_path / "run/adapter").eval(), batch)[0]
        whole = answers(merged, batch)[0]
    torch.testing.assert_close(whole, with_adapter, rtol=1e-3, atol=1e-4)  # W x + B A x against (W + B A) x
    assert (whole - base).abs().max() > 0.05


def test_only_what_the_recipe_trains_learns(data):
    for name, parts in (("llava_pretrain_7b", {"multi_modal_projector"}),
                        ("llava_finetune_7b", {"multi_modal_projector", "language_model", "lm_head"}),
                        ("llava_finetune_lora_7b", {"multi_modal_projector", "language_model"})):  # fmt: skip
        task, dataset = ready(small(name), data)
        task(dataset.__getitems__([0, 1]))["loss"].backward()
        learning = {n: p for n, p in task.named_parameters() if p.requires_grad}
        assert all(p.grad is not None for p in learning.values())
        assert {part for part in ("multi_modal_projector", "language_model", "lm_head", "vision_tower")
                if any(part in n for n in learning)} == parts  # fmt: skip
        if "lora" in name:
            assert all("lora_" in n for n in learning if "language_model" in n)
        optimizer = create_optimizer(task, replace(RECIPES[name].optim, connector_lr=0.5))
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(learning)
        assert len(optimizer.param_groups[0]["params"]) == sum("multi_modal_projector" in n for n in learning)
        assert optimizer.param_groups[0]["lr"] == 0.5


# -- the loss ----------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers(mixed):
    task, dataset = ready(small(), mixed)
    for keys in ([0, 1, 2, 3], [9, 10], [0, 9]):  # images, none, both
        batch = dataset.__getitems__(keys)
        wanted = task.model.llava(**batch).loss
        torch.testing.assert_close(task(batch)["loss"], wanted, rtol=1e-5, atol=1e-6)  # sums in another order


def test_a_batch_without_images_gives_the_connector_a_gradient_of_zero(mixed):
    task, dataset = ready(small(), mixed)
    task(dataset.__getitems__([9, 10]))["loss"].backward()
    grads = [p.grad for n, p in task.named_parameters() if "multi_modal_projector" in n and p.requires_grad]
    assert grads and all(grad is not None and not grad.any() for grad in grads)


def test_a_sample_counts_as_exact_where_all_its_tokens_are_the_likeliest(data):
    task, dataset = ready(small(), data)
    llava = task.model.llava.eval()
    scored = evaluate(llava, dataset, batch_size=3)
    hits = []
    for i in range(len(dataset)):
        with torch.no_grad():
            logits, target = answers(llava, dataset.__getitems__([i]))
        hits.append((logits.argmax(-1) == target).tolist())
    assert scored["exact"] == sum(map(all, hits)) / len(hits)
    assert scored["token_accuracy"] == pytest.approx(sum(map(sum, hits)) / sum(map(len, hits)))


def test_checkpointing_changes_nothing_but_memory(data):
    found = []
    for checkpointing in (False, True):
        task, dataset = ready(small(model={"checkpointing": checkpointing}), data)
        task.train()
        loss = task(dataset.__getitems__([0, 1]))["loss"]
        loss.backward()
        assert any(getattr(m, "gradient_checkpointing", False) for m in task.modules()) == checkpointing
        found.append([loss, *(p.grad for p in task.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# -- the loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava_pretrain_7b", "llava_finetune_7b", "llava_finetune_lora_7b"])
def test_a_run_broken_off_and_resumed_equals_the_unbroken_one_to_the_bit(tmp_path, data, mixed, name):
    where = data if "pretrain" in name else mixed
    whole = train(small(name), where, tmp_path / "whole")
    stopped = train(small(name, time_limit_minutes=1e-9), where, tmp_path / "broken")
    assert stopped["stopped"] == "time limit" and stopped["steps"] == 1
    resumed = train(small(name), where, tmp_path / "broken")
    a, b = (load_file(tmp_path / n / "checkpoints/step_00000004/model.safetensors") for n in ("whole", "broken"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert resumed["loss"] == whole["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ("ddp", "fsdp"))
@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
def test_two_processes_train_like_one(tmp_path, mixed, sharding):
    """Also where one of them has batches without images while it shares the connector's weights."""
    arguments = ["--model.connector_args", json.dumps(TINY), "--loop.sharding", sharding, "--samples.group", "false"]
    words = ["train", "vlm.llava_finetune_7b", "--tiny", "--data", str(mixed), *arguments,
             "--loop.parts", "2", "--loop.log_every", "1", "--loop.steps", "3"]  # fmt: skip
    results, printed = train_on_one_and_on_two(tmp_path, words, rel=1e-4)  # float32 sums in another order
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-4) and printed.count("train loss") == 1
    llava = AutoModelForImageTextToText.from_pretrained(tmp_path / "two")
    assert not any(p.is_meta for p in llava.parameters())


# -- kept features -----------------------------------------------------------------------------


@pytest.mark.parametrize("connector", ["sec", "evit"])
def test_kept_features_train_like_the_tower(tmp_path, data, connector, monkeypatch):
    recipe = small("llava_pretrain_7b", {"connector": connector})
    train(recipe, data, tmp_path / "tower")
    kept = replace(recipe, samples=replace(recipe.samples, cache=str(tmp_path / "cache")))
    train(kept, data, tmp_path / "kept")
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(files) == 10
    a, b = ([float(r["loss"]) for r in read_csv(tmp_path / n / "log.csv")[1]] for n in ("tower", "kept"))
    assert a == pytest.approx(b, rel=1e-4)  # the tower saw other batches: float32 sums in another order
    monkeypatch.setattr(CLIPVisionModel, "forward", None)  # and never runs again
    train(kept, data, tmp_path / "again")
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == files


def test_another_tower_or_view_keeps_features_of_its_own(tmp_path, data):
    base = small("llava_pretrain_7b", samples={"cache": str(tmp_path)}, steps=1)
    train(base, data, tmp_path / "a")
    train(replace(base, loop=replace(base.loop, seed=1)), data, tmp_path / "b")  # other random weights
    train(replace(base, samples=replace(base.samples, pad=not base.samples.pad)), data, tmp_path / "c")
    train(replace(base, model=replace(base.model, extra_token=None)), data, tmp_path / "d")  # needs no [cls]
    train(replace(base, model=replace(base.model, num_tokens=9)), data, tmp_path / "e")  # the same as the first
    assert len([p for p in tmp_path.iterdir() if len(p.name) == 16]) == 4


# -- what a run begins with --------------------------------------------------------------------


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A language model and a CLIP tower as one would download them."""
    from transformers import LlamaForCausalLM

    from secvit.vlm.small import small_llava, small_tokenizer

    where = tmp_path_factory.mktemp("towers")
    tokenizer = small_tokenizer(["a cat on a mat"], vocab_size=300)
    llava, _ = small_llava(tokenizer, None, image_size=32, dim=32)
    speaker = LlamaForCausalLM(llava.config.text_config)
    speaker.save_pretrained(where / "language")
    tokenizer.save_pretrained(where / "language")
    llava.model.vision_tower.save_pretrained(where / "vision")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        where / "vision"
    )
    return where, speaker, llava.model.vision_tower


def test_a_llava_is_put_together_of_two_towers(towers):
    where, speaker, tower = towers
    llava, _ = from_parts(str(where / "language"), str(where / "vision"))
    mine = llava.state_dict()
    assert not any(value.is_meta for value in mine.values())
    for key, value in tower.state_dict().items():
        assert torch.equal(mine[f"model.vision_tower.{key}"], value)
    theirs = speaker.state_dict()
    assert torch.equal(mine["lm_head.weight"][: len(theirs["lm_head.weight"])], theirs["lm_head.weight"])
    q = "layers.0.self_attn.q_proj.weight"
    assert torch.equal(mine[f"model.language_model.{q}"], theirs[f"model.{q}"])


def test_both_stages_run_from_two_towers_to_an_answer(tmp_path, data, towers):
    where, *_ = towers
    model = {
        "base": "parts",
        "language": str(where / "language"),
        "vision": str(where / "vision"),
        "connector_args": {},
    }

    def recipe(name, **more):
        made = small(name, steps=2)
        return replace(made, model=replace(made.model, **model, **more))

    train(recipe("llava_pretrain_7b"), data, tmp_path / "stage1")
    train(recipe("llava_finetune_7b", init=str(tmp_path / "stage1")), data, tmp_path / "stage2")
    for run in ("stage1", "stage2"):
        llava, processor = load_trained(tmp_path / run, "cpu")
        picture = Image.open(data / "images/0.png")
        assert isinstance(ask(llava, processor, [picture], "what?", max_new_tokens=3), str)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A DINOv2 tower for 56 px, whose images are cut to 28."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    where = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    tower = Dinov2Model(config).eval()
    tower.save_pretrained(where)
    cut = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=cut).save_pretrained(where)
    return where, tower


@pytest.mark.parametrize(("image_size", "side"), [(None, 28), (42, 42), (56, 56)])
def test_a_dinov2_tower_sees_images_of_one_size_by_resized_positions(towers, dinov2, image_size, side):
    where, tower = dinov2
    llava, processor = from_parts(str(towers[0] / "language"), str(where), image_size)
    pixels = processor.image_processor(Image.new("RGB", (70, 50)), return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (side, side)
    assert llava.config.vision_config.image_size == side and llava.config.image_seq_length == (side // 14) ** 2
    pixels = torch.randn(1, 3, side, side)
    mine, theirs = (net(pixels).last_hidden_state for net in (llava.model.vision_tower, tower))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_size_that_patches_do_not_divide_is_refused(towers, dinov2):
    with pytest.raises(ValueError, match="images of 40 px in a tower .dinov2. for 56 px"):
        from_parts(str(towers[0] / "language"), str(dinov2[0]), 40)
    with pytest.raises(ValueError, match="choose --model.image_size 32"):  # CLIP's positions stand apart
        from_parts(str(towers[0] / "language"), str(towers[0] / "vision"), 64)


def test_a_smol_llava_with_tied_words_is_trained_saved_and_read_again(tmp_path, data, towers, dinov2):
    from transformers import LlamaForCausalLM

    config = towers[1].config.__class__(**{**towers[1].config.to_dict(), "tie_word_embeddings": True})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(towers[0] / "language").save_pretrained(tmp_path / "tied")
    model = {"language": str(tmp_path / "tied"), "vision": str(dinov2[0]), "num_tokens": 4, "image_size": None}

    def recipe(name, **more):
        made = RECIPES[name]
        samples = replace(made.samples, cache=str(tmp_path / "features"))
        loop = replace(made.loop, epochs=None, steps=2, batch_size=2, workers=0)
        return replace(made, model=replace(made.model, **model, **more), samples=samples, loop=loop)

    train(recipe("smol_pretrain"), data, tmp_path / "one")
    train(recipe("smol_finetune", init=str(tmp_path / "one"), lora=4), data, tmp_path / "two")
    llava, processor = load_trained(tmp_path / "two", "cpu")
    assert llava.lm_head.weight is llava.get_input_embeddings().weight
    picture = Image.open(data / "images/0.png")
    assert isinstance(ask(llava, processor, [picture], "what?", max_new_tokens=3), str)


def test_a_run_goes_on_from_a_saved_llava_and_will_not_lose_its_connector(tmp_path, data):
    first = small(steps=1)
    train(first, data, tmp_path / "first")
    again = replace(first, model=replace(first.model, base=str(tmp_path / "first"), connector=None, connector_args={}))
    one, two = (initial_llava(replace(again.model, connector=c), lambda: ())[0] for c in (None, "sec"))
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "first").state_dict()
    for llava in (one, two):
        assert all(torch.equal(value, saved[key]) for key, value in llava.state_dict().items())
    with pytest.raises(ValueError, match="has a connector already, with num_tokens 16, not 9"):
        initial_llava(replace(again.model, connector="sec", num_tokens=9))
    with pytest.raises(ValueError, match=r"--model\.base /nowhere"):
        initial_llava(Model(base="/nowhere"))


@pytest.mark.parametrize(
    "change, message",
    [({"trained": (), "lora": 0}, "name the parts that learn"), ({"lora": 8}, "freezes the language model"), ({"trained": (), "lora": -1}, "lora=-1")],
)  # fmt: skip
def test_parts_that_contradict_each_other_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Model(**change)


# -- the commands ------------------------------------------------------------------------------


def test_train_and_ask_from_the_command_line(tmp_path, data, capsys):
    run = tmp_path / "run"
    words = ["--tiny", "--loop.device", "cpu", "--loop.steps", "1", "--model.connector_args", json.dumps(TINY)]
    assert main(["train", "vlm.small", "--data", str(data), "--output", str(run), *words]) == 0
    assert "val loss" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["base"] == "small"
    photo = str(data / "images/0.png")
    assert main(["ask", str(run), photo, photo, "what is it?", "--max_new_tokens", "4", "--device", "cpu"]) == 0
    assert main(["ask", str(tmp_path), photo, "what?"]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert main(["train", "vlm.small"]) == 2
    assert "give --data DIR" in capsys.readouterr().err


def test_bad_samples_end_the_command_before_the_first_step(tmp_path, data, capsys):
    entries = json.loads((data / "train.json").read_text())
    entries[3]["image"], entries[4]["conversations"][0]["value"] = "gone.png", "what?"
    (data / "bad.json").write_text(json.dumps(entries))
    try:
        words = ["train", "vlm.small", "--tiny", "--data", str(data / "bad.json"), "--output", str(tmp_path / "run")]
        assert main(words) == 2
    finally:
        (data / "bad.json").unlink()
    said = capsys.readouterr().err
    assert "sample 'p3'" in said and "sample 'p4'" in said and not (tmp_path / "run/checkpoints").exists()


def test_kept_features_that_are_broken_are_named_with_the_remedy(tmp_path, data):
    recipe = small("llava_pretrain_7b", samples={"cache": str(tmp_path / "cache")}, steps=1)
    train(recipe, data, tmp_path / "a")
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=r"\.safetensors: kept features that cannot be read .*delete it and start again"
    ):
        train(recipe, data, tmp_path / "b")
