"""The names that bind vLLM's plug-in to the rest, checked without vLLM; test_vllm.py runs it."""

from __future__ import annotations

import ast
import re
import sys
import types

from secvit.vlm import SecLlavaForConditionalGeneration, serving
from tests.conftest import ROOT


def test_the_plug_in_names_a_class_that_is_there_and_the_architecture_that_is_saved(monkeypatch):
    told = {}
    vllm = types.SimpleNamespace(ModelRegistry=types.SimpleNamespace(register_model=told.__setitem__))
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    serving.register()
    serving.register()
    ((architecture, place),) = told.items()
    assert architecture == SecLlavaForConditionalGeneration.__name__
    module, name = place.split(":")
    tree = ast.parse((ROOT / "src" / (module.replace(".", "/") + ".py")).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_the_package_declares_the_plug_in():
    declared = re.search(
        r'\[project.entry-points."vllm.general_plugins"\]\nsecvit = "(.+):(.+)"', (ROOT / "pyproject.toml").read_text()
    )
    module, name = declared.groups()
    assert getattr(sys.modules[module], name) is serving.register
