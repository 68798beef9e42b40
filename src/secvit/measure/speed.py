"""Speed of whole models: ours, their literal twins and timm's, in one interleaved run."""

from __future__ import annotations

import ast
import copy
import functools
import importlib.util
import inspect
import os
import shutil
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from secvit.layers import route_linears
from secvit.measure.bench_results import ModelRow, ModelSpeeds
from secvit.measure.macs import count_macs
from secvit.measure.rounds import NULL, Seconds, clock_for, interleave, is_quiet, speed_ratio
from secvit.models import SECViT
from secvit.models.convert import heads_of, to_authors
from secvit.models.saved import device_of
from secvit.ops.products import linear
from secvit.ops.road import road, using_road

SWIN = "swin_tiny_patch4_window7_224"
MODELS = ("secvit_tiny", "secvit_small", SWIN, "deit_small_patch16_224")
TWIN, FUSED, SAME_ROAD = "literal ", "fused ", "same road "
MATRIX, ONEDNN = "matrix product", "matrix product by oneDNN"
AUTHORS = ("KClusterFormerSimpleNew_", "SecViT_")  # how functions that make a network begin in the authors' file
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EXACT = 1e-9  # float64, of the largest logit: rounding is 1e-15, one token in another cluster 1e-3
ROUNDED = 2e-2  # float32: nearly tied tokens may swap clusters, which moves logits by 0.5 to 1 %


def bench_models(
    models: Sequence[str] = MODELS,
    base: str | None = None,
    mode: str = "inference",
    dtype: str = "float32",
    compiled: bool = False,
    batch_size: int = 8,
    image_size: int = 224,
    rounds: int = 7,
    threads: int = 1,
    literal: ModuleType | None = None,
    progress: bool = False,
    compile_seconds: float = 900,
) -> ModelSpeeds:
    """Speed of each model as a ratio to `base`, and of ours to their literal twins.

    mode: "inference" or "training".  literal: the module with `like(model)`, or None for no twins.
    compile_seconds: no further model is compiled once this much time has gone into compiling.
    A model without a twin is listed under `skipped`.  Raises ValueError where none has one, and ArithmeticError
    where a model and its twin disagree, both before anything is timed.
    """
    base = base or (SWIN if SWIN in models else models[0])
    images = made_up_images(batch_size, image_size)
    networks, differences, skipped = _networks(models, images, mode, dtype, compiled, literal)
    clock = clock_for(threads)
    candidates: dict[str, Callable[[], object]] = {}
    spent = 0.0
    for name, network in networks.items():
        call = training_step(network, images, dtype) if mode == "training" else inference(network, images, dtype)
        if compiled:
            if spent > compile_seconds:
                skipped[name] = f"not compiled: {spent:.0f} s had gone into compiling others"
                continue
            start = time.perf_counter()
            call = compile_call(name, call, network, images, dtype)
            spent += time.perf_counter() - start
        candidates[name] = call
    if mode == "inference":
        square = torch.randn(1024, 1024, dtype=DTYPES[dtype])
        candidates[MATRIX] = lambda: square @ square
        if dtype == "float32" and torch.backends.mkldnn.is_available():
            candidates[ONEDNN] = lambda: onednn_product(square, square)
    title = f"{mode} {dtype}{' compiled' if compiled else ''}" if progress else None
    seconds = interleave(candidates, base, rounds, clock, title=title)
    macs = {name: count_macs(build(name, image_size, "meta"), (3, image_size, image_size)).total for name in models}
    rows = [_row(name, seconds, base, batch_size, macs) for name in seconds if name not in (MATRIX, ONEDNN)]
    quiet = is_quiet(seconds, base)
    return ModelSpeeds(mode, dtype, compiled, batch_size, image_size, base, quiet, skipped, differences, rows, seconds)


def _networks(
    models: Sequence[str], images: Tensor, mode: str, dtype: str, compiled: bool, literal: ModuleType | None
) -> tuple[dict[str, nn.Module], dict[str, dict[str, float]], dict[str, str]]:
    """The models and their variants, how far each is from its literal twin, and why others have none."""
    networks, differences = {}, {}
    skipped: dict[str, str] = {}
    for name in models:
        network: Any = build(name, images.shape[-1])
        networks[name] = network
        if mode == "inference" and not compiled and hasattr(network, "fuse"):
            networks[FUSED + name] = check_fused(name, network, images[:1])
        if is_rival(name) and dtype == "float32" and road() == "onednn":
            routed = copy.deepcopy(network)
            if route_linears(routed) > 1:  # one is a classifier, of few rows
                networks[SAME_ROAD + name] = routed
        if literal is not None and is_ours(name):
            try:
                twin = literal.like(network)
            except ValueError as error:
                skipped[TWIN + name] = str(error)
                continue
            differences[name] = check_twin(name, network, twin, images[:1], dtype)
            networks[TWIN + name] = twin
    if skipped and not differences:
        raise ValueError("no model has a literal twin: " + next(iter(skipped.values())))
    return networks, differences, skipped


def _row(name: str, seconds: Seconds, base: str, batch_size: int, macs: dict[str, int]) -> ModelRow:
    plain = name.removeprefix(FUSED).removeprefix(SAME_ROAD)
    twin = TWIN + plain
    count = macs[plain.removeprefix(TWIN).removesuffix(NULL)]
    work = count * batch_size / 1024**3
    matrix, onednn = (
        work * speed_ratio(seconds, name, peak).median if peak in seconds else None for peak in (MATRIX, ONEDNN)
    )
    vs_literal = speed_ratio(seconds, name, twin) if twin in seconds else None
    return ModelRow(name, speed_ratio(seconds, name, base), vs_literal, count, matrix, onednn)


def onednn_product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of square float32 matrices by oneDNN, whatever road is in force."""
    with using_road("onednn"):
        return linear(a, b)


def check_settings(dtypes: Sequence[str], device: str = "cpu", json: str | None = None) -> None:
    """ValueError for what a benchmark cannot run with, before it runs: dtypes, device, the file to write."""
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown:
        raise ValueError(f"dtype={unknown[0]!r}; choose from {', '.join(DTYPES)}")
    device_of(device)
    if json is not None and not Path(json).resolve().parent.is_dir():
        raise ValueError(f"{Path(json).resolve().parent}: no such folder; make it first")


def build(name: str, image_size: int, device: str | None = None) -> nn.Module:
    """A model with random weights, the same ones every time, in eval mode."""
    settings = timm.get_pretrained_cfg(name)
    fixed = settings is not None and settings.fixed_input_size and settings.input_size[-1] != image_size
    options: dict[str, Any] = {"img_size": image_size} if fixed else {}
    torch.manual_seed(0)
    model = timm.create_model(name, drop_path_rate=0.0, device=device, **options)
    return model.eval()


def is_ours(name: str) -> bool:
    """Whether a name is of a SECViT, which alone has literal twins."""
    return name.startswith("secvit")


def is_rival(name: str) -> bool:
    """Whether a name is of a network of others, whose linear layers are torch's."""
    return not name.startswith(("secvit", "sec_"))


def made_up_images(batch_size: int, size: int | tuple[int, int]) -> Tensor:
    """Random images with something to cluster: squares of one colour, and noise.  (B, 3, H, W)"""
    height, width = (size, size) if isinstance(size, int) else size
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch_size, 3, -(-height // 16), -(-width // 16), generator=random) * 3 - 1.5
    coarse = coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :height, :width]
    return coarse + 0.3 * torch.randn(batch_size, 3, height, width, generator=random)


def inference(model: nn.Module, images: Tensor, dtype: str) -> Callable[[], Tensor]:
    model.eval().to(DTYPES[dtype])
    images = images.to(DTYPES[dtype])

    def call() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return call


def training_step(model: nn.Module, images: Tensor, dtype: str) -> Callable[[], Tensor]:
    """Forward, cross-entropy, backward, AdamW; autocast for bfloat16."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with torch.no_grad():
        classes = model(images[:2]).shape[-1]
    labels = torch.arange(len(images), device=images.device) % classes
    casting: Callable[[], AbstractContextManager[Any]] = nullcontext
    if dtype != "float32":
        casting = lambda: torch.autocast(images.device.type, DTYPES[dtype])  # noqa: E731

    def call() -> Tensor:
        with casting():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return call


def compile_call(
    name: str, eager: Callable[[], Tensor], model: nn.Module, images: Tensor, dtype: str
) -> Callable[[], Tensor]:
    expected = eager()
    call = inference(torch.compile(model), images, dtype)  # type: ignore[arg-type]
    error = distance(call(), expected)
    if dtype == "float32" and not error <= ROUNDED:
        raise ArithmeticError(f"{name} compiled differs from eager by {error:.1e} of the largest logit; not timed")
    return call


def check_twin(name: str, model: nn.Module, twin: nn.Module, images: Tensor, dtype: str) -> dict[str, float]:
    """max |dlogit| / max |logit| against the twin in float64: of ours in float64, and of both in `dtype`.

    Raises ArithmeticError where the two are not the same function.
    """

    def logits(network: nn.Module, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode():
            return copy.deepcopy(network).eval().to(dtype)(images.to(dtype))

    truth = logits(twin, torch.float64)
    errors = {
        "float64": distance(logits(model, torch.float64), truth),
        "ours": distance(logits(model, DTYPES[dtype]), truth),
        "literal": distance(logits(twin, DTYPES[dtype]), truth),
    }
    allowed = ROUNDED if dtype == "float32" else 2 * errors["literal"]  # bfloat16 is no exact science for either
    if not (errors["float64"] <= EXACT and errors["ours"] <= allowed):
        raise ArithmeticError(
            f"{name} and its literal twin differ by {errors['float64']:.1e} of the largest logit in float64 and are "
            f"{errors['ours']:.1e} and {errors['literal']:.1e} off in {dtype}; no speed is given while outputs differ"
        )
    return errors


def check_fused(name: str, model: Any, images: Tensor) -> nn.Module:
    """`fuse()` of a copy of a network that has one; raises ArithmeticError where that is not the same function."""
    exact = copy.deepcopy(model).eval().double()
    with torch.inference_mode():
        error = distance(copy.deepcopy(exact).fuse()(images.double()), exact(images.double()))
    if not error <= EXACT:
        raise ArithmeticError(f"{name} fused differs by {error:.1e} of the largest logit in float64; not timed")
    return copy.deepcopy(model).fuse()


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


# -- the literal twins -------------------------------------------------------------------------


def find_literal(path: str | None) -> ModuleType | None:
    """The module at `path`, or the one of a checkout that is the current folder, or None."""
    if path is not None:
        return load_literal(Path(path))
    here = Path("benchmarks", "literal.py")
    return load_literal(here) if here.is_file() else None


def load_literal(path: Path) -> ModuleType:
    """Run the file at `path` as a module.  Its `like(model)` makes the twin of a model.

    A file of the authors' has no such function; it gets one (`authors_like`).  Raises ValueError where the file
    cannot be run here or has no networks.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the literal network is benchmarks/literal.py of the repository")
    module = ModuleType("secvit_literal")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # timm's register_model and dataclasses look there for the module they are in
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the authors' file imports timm's layers by a former name
            warnings.filterwarnings("ignore", f"Overwriting ({'|'.join(AUTHORS)})")  # loaded for a second time
            exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except Exception as error:
        del sys.modules[module.__name__]
        remedy = import_remedy(path, error) if isinstance(error, ImportError) else ""
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}{remedy}") from error
    if not hasattr(module, "like"):
        module.like = authors_like(path, module)  # type: ignore[attr-defined]
    return module


def import_remedy(path: Path, error: ImportError) -> str:
    """What to install, all of it at once, where the file at `path` stopped at one import."""
    names = [error.name] if isinstance(error, ModuleNotFoundError) and error.name else []
    for line in ast.parse(path.read_bytes()).body:
        if isinstance(line, ast.Import):
            names += [alias.name for alias in line.names]
        elif isinstance(line, ast.ImportFrom) and line.module and not line.level:
            names.append(line.module)
    packages = {name.partition(".")[0] for name in names}
    missing = sorted(name for name in packages if name not in sys.modules and importlib.util.find_spec(name) is None)
    if missing:
        return f"; run: pip install {' '.join(missing)} (or add the folder of a module of your own to PYTHONPATH)"
    return f"; it needs another version of {error.name.partition('.')[0]}" if error.name else ""


def authors_like(path: Path, module: ModuleType) -> Callable[[SECViT], nn.Module]:
    """`like(model)` from the authors' classification file: their network of the same shape, with a model's weights."""
    factories = {name: value for name, value in vars(module).items() if name.startswith(AUTHORS) and callable(value)}
    if not factories:
        raise ValueError(
            f"{path} has neither a function like(model), which makes the twin of a model, nor the authors' networks, "
            f"functions named {' or '.join(name + '*' for name in AUTHORS)}"
        )

    def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in state.items()}

    @functools.cache
    def shapes_of(name: str) -> dict[str, torch.Size]:
        return shapes(call_factory(factories[name]).state_dict())

    def find(model: nn.Module) -> str | None:
        wanted = shapes(to_authors(model.state_dict(), heads_of(model)))
        return next((name for name in factories if shapes_of(name) == wanted), None)

    @functools.cache
    def presets() -> str:
        fitting = [name for name in timm.list_models("secvit*") if find(build(name, 224, "meta"))]
        return f"it has those of {', '.join(fitting)}" if fitting else "nor of any other preset"

    def like(model: SECViT) -> nn.Module:
        name = find(model)
        if name is None:
            raise ValueError(f"{path} has no network of this shape; {presets()}")
        twin = call_factory(factories[name])
        twin.load_state_dict(to_authors(model.state_dict(), heads_of(model)))
        for layer in twin.modules():
            if isinstance(layer, DropPath):
                layer.drop_prob = 0.0  # as in `build`, so that both do the same in training
        return twin.eval()

    return like


def call_factory(factory: Callable[..., nn.Module]) -> nn.Module:
    """The network of a factory; the authors' take the parsed command line, which they do not read."""
    parameters = inspect.signature(factory).parameters.values()
    required = [one for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return factory(*(Namespace() for _ in required))


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)
