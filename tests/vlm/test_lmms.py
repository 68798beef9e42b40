"""lmms-eval finds our model by its entry point and scores its answers, without a network."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.vlm.evaluate import reply
from secvit.vlm.small import small_llava

if importlib.util.find_spec("lmms_eval") is None:
    pytest.skip("lmms_eval is not installed: pip install lmms_eval", allow_module_level=True)

TASK = """\
task: secvit_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/samples.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function local.pictures
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false, until: ["STOP"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """\
from PIL import Image
def pictures(doc):
    return [Image.open(path) for path in doc["images"]]
"""


def test_the_entry_point_is_installed():
    (found,) = entry_points(group="lmms_eval.models", name="secvit")
    assert found.value == "secvit.vlm.lmms:manifest"


def test_five_samples_of_a_local_task(tokenizer, tmp_path):
    torch.manual_seed(0)
    model, processor = small_llava(tokenizer, num_tokens=4, image_size=32, patch_size=8)
    spoken = {i for word, i in tokenizer.get_vocab().items() if word.isascii() and word.isalpha()}
    model.generation_config.suppress_tokens = [i for i in range(len(tokenizer)) if i not in spoken]
    for part in (model, processor):
        part.save_pretrained(tmp_path / "run")
    noise, samples = np.random.default_rng(0), []
    for i in range(5):
        pictures = [Image.fromarray(noise.integers(0, 255, (30, 40, 3), dtype=np.uint8))] * (
            i != 4
        )  # the last has none
        files = [str(tmp_path / f"{i}.png") for _ in pictures]
        for picture, file in zip(pictures, files):
            picture.save(file)
        question = f"what is in picture {i}?"
        content = [*({"type": "image", "image": one} for one in pictures), {"type": "text", "text": question}]
        (said,) = reply(model, processor, [[{"role": "user", "content": content}]], max_new_tokens=4)
        samples.append({"images": files, "question": question, "answer": said if i in (0, 2, 4) else "nothing"})
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(TASK.format(folder=tmp_path))
    (tmp_path / "tasks" / "local.py").write_text(FUNCTIONS)
    command = (
        f"-m lmms_eval --model secvit --model_args pretrained={tmp_path}/run,device=cpu --batch_size 2 --log_samples "
        f"--tasks secvit_local --include_path {tmp_path}/tasks --output_path {tmp_path}/out"
    )
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *command.split()], env={**os.environ, **offline}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    (results,) = tmp_path.glob("out/**/*results.json")
    # three of five are what our own evaluation says
    assert json.loads(results.read_text())["results"]["secvit_local"]["exact_match,none"] == pytest.approx(0.6)


def test_a_tasks_arguments_become_transformers():
    lmms = pytest.importorskip("secvit.vlm.lmms", exc_type=ImportError)
    asked = {"max_new_tokens": 16, "temperature": 0, "do_sample": True, "until": ["\n\n"], "image_aspect_ratio": "pad"}
    assert lmms.generation(asked) == {"max_new_tokens": 16, "temperature": 0, "do_sample": False}
    assert lmms.generation({"temperature": 0.2})["do_sample"] and not lmms.generation({})["do_sample"]
    assert lmms.cut("Yes STOP no\n\nmore", ["\n\n", "STOP"]) == "Yes" and lmms.cut("Yes", None) == "Yes"
    assert lmms.cut("a. b", ".") == "a"
