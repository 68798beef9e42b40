"""Under every version of transformers the same weights and pixels give the same features."""

from __future__ import annotations

import json

import pytest

from tests.golden.make_llava import FILE, LAYERS, features


@pytest.mark.parametrize("layers", LAYERS)
def test_features_of_a_llava_do_not_depend_on_the_version_of_transformers(layers):
    golden, found = json.loads(FILE.read_text())[layers], features(LAYERS[layers])
    assert found["shape"] == golden["shape"]
    for part in ("mean_std", "first"):
        # float64 throughout; transformers computes some softmaxes in float32, whose eps is 1e-7
        assert found[part] == pytest.approx(golden[part], rel=1e-6, abs=1e-6)
