"""What is not installed is named; what is broken is not passed over."""

import sys

import pytest

from secvit import recipes
from secvit.extras import Missing, needs


def test_a_missing_package_is_named_with_its_extra():
    missing = pytest.raises(Missing, match=r'a page needs nowhere; run: pip install "secvit\[app\]"')
    with missing, needs("a page", "nowhere", "app"):
        import nowhere_to_be_found  # noqa: F401


def test_recipes_leave_out_what_is_not_installed_and_nothing_that_is_broken(monkeypatch):
    assert "detection.folder" in recipes.every()

    def broken(error):
        def load(name):
            if name == "secvit.detection.recipes":
                raise error
            return sys.modules[name]

        return load

    monkeypatch.setattr(recipes.importlib, "import_module", broken(Missing("secvit.detection needs a package")))
    assert not any(name.startswith("detection.") for name in recipes.every())
    monkeypatch.setattr(recipes.importlib, "import_module", broken(ImportError("cannot import name 'x'")))
    with pytest.raises(ImportError, match="cannot import name"):
        recipes.every()
