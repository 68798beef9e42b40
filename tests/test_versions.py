"""The range that pyproject.toml allows is the range that the tests ran with."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# what users install; tools of development are as old or new as the constraints say
LIBRARIES = [*PROJECT["dependencies"], *(line for extra in EXTRAS if extra != "dev" for line in EXTRAS[extra])]
REQUIREMENTS = [r for r in map(Requirement, LIBRARIES) if r.name != "secvit"]


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line)] == []
    assert lines == sorted(set(lines))
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_each_library_has_a_lower_bound_which_is_what_make_test_oldest_installs(requirement):
    (lowest,) = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    assert lowest == Version(pinned("constraints-oldest.txt")[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_what_make_installs_is_in_the_range(requirement):
    assert pinned("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier


def test_everything_that_make_installs_is_pinned():
    tools = [r for r in map(Requirement, EXTRAS["dev"]) if r.name != "secvit"]
    for file in ("constraints.txt", "constraints-oldest.txt"):
        assert {canonicalize_name(r.name) for r in tools} <= pinned(file).keys()
