"""pytest plugin: timm's own tests/test_models.py on secvit's models.

timm's wheel has no tests; unpack the sdist of the installed version, and in it run
    PYTHONPATH=<this repository> python -m pytest -p tests.models.timm_suite tests/test_models.py
Its tests of TorchScript are left out: torch.compile, torch.export and ONNX are what works here.
"""

import fnmatch

import timm

import secvit  # noqa: F401  registers the models

OURS = ["secvit_nano", "secvit_tiny", "sec_swin_tiny"]  # timm leaves plain ViTs, like SEC-DeiT, out of half of it


def list_models(filter="", module="", pretrained=False, exclude_filters="", **kwargs):
    """Ours wherever timm's tests ask for all models, none where they ask for pretrained or transformer-like ones."""
    exclude = [exclude_filters] if isinstance(exclude_filters, str) else exclude_filters
    return [] if pretrained or filter else [m for m in OURS if not any(fnmatch.fnmatch(m, e) for e in exclude)]


timm.list_models = list_models
timm.list_pretrained = lambda *args, **kwargs: []


def pytest_collection_modifyitems(config, items):
    ours = [i for i in items if any(name in i.name for name in OURS) and "torchscript" not in i.name]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours
