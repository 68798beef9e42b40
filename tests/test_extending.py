"""docs/extending.md: what it prints runs."""

import os
import re
import subprocess
import sys

import pytest

from secvit.ops import partition_sizes
from secvit.ops.partitions import SCORES
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMAND = re.search(r"```console\n(.*?)\n```", PAGE, re.DOTALL)[1]


def test_the_blocks_of_the_page_run_one_after_another(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'secvit[vis]'")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    before = dict(SCORES)
    try:
        for block in BLOCKS[:-1]:
            exec(block, names)
    finally:
        SCORES.clear()
        SCORES.update(before)
    plan, secvit = names["plan"], names["secvit"]
    assert plan.sizes.tolist() == [[49] * 4] * 2
    assert plan.labels[0].view(14, 14)[0, 0] == 0 and plan.labels[0].view(14, 14)[-1, -1] == 3
    seeds = secvit.cluster(names["tokens"], 8, partition=names["nearest_seed"])
    assert seeds.sizes[0].tolist() == partition_sizes(196, 8)
    assert names["logits"].shape == (1, 10) and names["features"].shape == (1, 197, 192)
    assert [found.partition for found in (*names["maps"], *names["other"])] == ["diagonal", "window"]
    assert (tmp_path / "diagonal.png").is_file()


def test_the_command_of_the_page_trains_with_a_name_and_the_run_keeps_it(tmp_path):
    pytest.importorskip("sklearn", reason="sklearn is not installed: pip install 'secvit[dev]'")
    (tmp_path / "rules.py").write_text(BLOCKS[-1])
    python, *words = COMMAND.split(maxsplit=4)
    assert (python, words[0]) == ("python", "rules.py")
    command = f'"{sys.executable}" {" ".join(words)} --tiny'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "partition: diagonal" in (tmp_path / "runs" / "diagonal" / "config.yaml").read_text()
