"""A LLaVA over a benchmark: greedy answers in batches, each written down as it comes, taken up again, and scored."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from secvit.files import write_atomically
from secvit.images import read_image
from secvit.models.saved import device_of
from secvit.processes import is_first, join, of_all_processes, share
from secvit.vlm import benchmarks
from secvit.vlm.answers import Key, keys, match, mend, row_keys
from secvit.vlm.asking import load_trained
from secvit.vlm.benchmarks import Question
from secvit.vlm.chat import prepare
from secvit.vlm.rows import read_lines
from secvit.vlm.submissions import check_submission, write_submission

# -- answers of a model --------------------------------------------------------------------------


def encode(processor: ProcessorMixin, conversations: Sequence[list[dict[str, Any]]]) -> Any:
    """Conversations that have images all, or none, as a batch padded on the left.

    Messages are those of transformers' chat templates, with images inside: {"type": "image", "image": PIL image}.
    """
    return processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def reply(
    model: PreTrainedModel, processor: ProcessorMixin, conversations: Sequence[list[dict[str, Any]]], **generate: Any
) -> list[str]:
    """What a model says at the end of conversations, of which some may have no image.  Messages as in `encode`."""
    replies: dict[int, str] = {}
    for with_image in (True, False):
        some = [i for i, one in enumerate(conversations) if _has_image(one) == with_image]
        if some:
            inputs = encode(processor, [conversations[i] for i in some])
            replies |= dict(zip(some, generate_texts(model, processor, inputs, **generate), strict=True))
    return [replies[i] for i in range(len(conversations))]


@torch.inference_mode()
def generate_texts(model: Any, processor: ProcessorMixin, inputs: Any, **generate: Any) -> list[str]:
    """What a model says to a batch of `encode`, greedily unless `generate` (arguments of transformers') says else."""
    options = {"do_sample": False, "pad_token_id": processor.tokenizer.pad_token_id, **generate}
    if not options["do_sample"]:  # of no use then, and warned of, also where the checkpoint sets them
        options |= {"temperature": None, "top_p": None, "top_k": None}
    ids = model.generate(**inputs.to(model.device, model.dtype), **options)
    new = ids[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def _has_image(conversation: list[dict[str, Any]]) -> bool:
    parts = [part for message in conversation if not isinstance(message["content"], str) for part in message["content"]]
    return any(part["type"] == "image" for part in parts)


def answer(
    model: PreTrainedModel, processor: ProcessorMixin, questions: Sequence[Question], path: str | os.PathLike[str], *,
    batch_size: int = 1, max_new_tokens: int = 128, name: str = "",
) -> list[str]:  # fmt: skip
    """A model's answers to questions, in their order, and in a file of LLaVA's format.

    Of many processes each answers a share.  What is answered is in files beside `path` at once; the same call again
    goes on from there, and refuses answers of other weights, or of other settings.  Images of the next batch are
    read meanwhile.  name: what the file calls the model.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"model_id": name, "metadata": {"made_with": fingerprint(model, processor, max_new_tokens)}}
    done = _written(path, questions, stamp)
    left = {key: question for key, question in zip(keys(questions), questions, strict=True) if key not in done}
    of_all_processes([])  # all have read before anyone writes
    own_questions = [[*left.values()][i] for i in share(len(left))]
    batches = [*_batches(own_questions, batch_size)]
    with open(_part(path), "a", encoding="utf-8") as file, ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(_encoded, processor, batch) for batch in batches[:1]]
        bar = tqdm(total=len(own_questions), desc=f"answering {path.stem}", disable=not is_first() or None, leave=False)
        for number, batch in enumerate(batches):
            inputs = coming.pop().result()
            coming = [pool.submit(_encoded, processor, after) for after in batches[number + 1 : number + 2]]
            texts = generate_texts(model, processor, inputs, max_new_tokens=max_new_tokens)
            for question, text in zip(batch, texts, strict=True):
                row = {"question_id": question.id, "prompt": question.prompt, "text": text, **stamp}
                file.write(json.dumps(row) + "\n")
            file.flush()
            bar.update(len(batch))
        bar.close()
    of_all_processes([])
    if is_first():
        done = _written(path, questions, stamp)
        lines = [json.dumps(done[key]) + "\n" for key in dict.fromkeys(keys(questions))]
        write_atomically(path, "".join(lines).encode())
        for part in _parts(path):
            part.unlink()
    of_all_processes([])
    return match(questions, read_lines(path), str(path))


def _written(path: Path, questions: Sequence[Question], stamp: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """The answers in a file and in the parts that it is made of, by question; a ValueError where they are not ours."""
    wanted, done = set(keys(questions)), {}
    for part in _parts(path):
        mend(part)
    for file in [*([path] if path.is_file() else ()), *_parts(path)]:
        rows = read_lines(file)
        for number, (key, row) in enumerate(zip(row_keys(questions, rows, str(file)), rows, strict=True), 1):
            if row.get("metadata") != stamp["metadata"] or key not in wanted:
                what = "of other weights or settings" if key in wanted else f"to another benchmark's question {key[0]}"
                raise ValueError(f"{file}, line {number}: an answer {what}; delete the file, or write to another one")
            done[key] = row
    return done


def fingerprint(model: PreTrainedModel, processor: ProcessorMixin, max_new_tokens: int) -> str:
    """Twelve letters that change with the weights (by the first 64 values of each), the prompts and the images."""
    digest = hashlib.sha1(f"{processor.chat_template}{processor.image_processor.to_json_string()}".encode())
    digest.update(str(max_new_tokens).encode())
    for weight_name, weight in model.state_dict().items():
        if isinstance(weight, torch.Tensor) and weight.device.type != "meta":
            start = weight.detach().flatten()[:64].cpu().contiguous().view(torch.uint8)
            digest.update(weight_name.encode() + start.numpy().tobytes())
    return digest.hexdigest()[:12]


def _batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Batches with images, then batches without."""
    for with_image in (True, False):
        some = [question for question in questions if (question.image is not None) == with_image]
        yield from (some[start : start + size] for start in range(0, len(some), size))


def _encoded(processor: ProcessorMixin, questions: Sequence[Question]) -> Any:
    conversations = []
    for one in questions:
        content: list[dict[str, Any]] = [{"type": "text", "text": one.prompt}]
        if one.image is not None:
            where = "its image" if isinstance(one.image, bytes) else one.image
            content.insert(0, {"type": "image", "image": read_image(one.image, f"question {one.id}: {where}")})
        conversations.append([{"role": "user", "content": content}])
    return encode(processor, conversations)


def _part(path: Path) -> Path:
    """Where this process writes until all have answered."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return path.with_name(f"{path.name}.part{rank}")


def _parts(path: Path) -> list[Path]:
    return sorted(file for file in path.parent.iterdir() if file.name.startswith(f"{path.name}.part"))


# -- a checkpoint on a benchmark -----------------------------------------------------------------


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str] | None, benchmark: str, data: str | os.PathLike[str], split: str = "val", *,
    answers: str | os.PathLike[str] | None = None, template: str | None = None, batch_size: int = 1,
    device: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Answer a benchmark of tables 7 to 9 and score the answers; without a checkpoint, score those that there are.

    checkpoint: as for `load_trained`.  data: the benchmark's folder.  answers: the .jsonl file of them, else in the
    checkpoint's folder; beside it come the figures (.scores.json) and what the benchmark's server takes
    (.upload.json, .upload.xlsx).  template: "v1" for LLaVA-1.5's own prompt and square images; None for the
    processor's, which is a run's own.  Under torchrun all processes answer.
    """
    rule = benchmarks.find(benchmark)
    check_submission(benchmark)
    questions = benchmarks.load(benchmark, os.fspath(data), split)
    scorable = rule.rule is not None and benchmarks.has_truth(benchmark, questions)
    path = Path(answers) if answers else _place(checkpoint, benchmark, split)
    if checkpoint is None:
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give a model to answer the questions")
        texts = match(questions, read_lines(path), str(path))
    else:
        joined = join(cpu=device == "cpu", timeout=timedelta(days=1))  # shares may take unequally long
        place = device_of(device or joined)
        # many checkpoints are saved at half precision, which is slow there
        model, processor = load_trained(checkpoint, place, torch.float32 if place.type == "cpu" else "auto")
        processor = prepare(processor, template, pad=template is not None)
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "max_new_tokens": rule.max_new_tokens,
            "name": str(checkpoint),
        }
        texts = answer(model, processor, questions, path, **options)
    result: dict[str, Any] = {"benchmark": benchmark, "answered": len(texts), "answers": str(path)}
    if scorable:
        result |= benchmarks.score(benchmark, questions, texts)
    else:
        result["not scored"] = f"the truth: {rule.truth}"
    if is_first():
        if upload := write_submission(path, benchmark, questions, texts, Path(data)):
            result["upload"] = str(upload)
        write_atomically(path.with_suffix(".scores.json"), json.dumps(result, indent=1).encode())
    return result


def _place(checkpoint: str | os.PathLike[str] | None, benchmark: str, split: str) -> Path:
    if checkpoint is None:
        raise ValueError("give a model, or a file of answers to score")
    run = Path(checkpoint)
    folder = run / "answers" if run.is_dir() else Path("answers", str(checkpoint).replace("/", "--"))
    return folder / f"{benchmark}_{split}.jsonl"
