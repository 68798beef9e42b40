"""What a result was made with: versions, commit and hardware, to be written beside it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("secvit", "torch", "torchvision", "timm", "transformers", "numpy", "pillow")


def provenance() -> dict[str, Any]:
    """Versions of the packages that decide a number, the git commit of a checkout, the hardware, the day."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "commit": git_commit(), "hardware": hardware(), "date": today()}


def result_name(title: str, about: Mapping[str, Any]) -> str:
    """What a result with this provenance is called: title_hardware_torchVERSION_date, without an ending."""
    hardware = re.sub(r"\W+", "-", about["hardware"].split(",")[0]).strip("-").lower()
    return f"{title}_{hardware}_torch{about['versions']['torch'].split('+')[0]}_{about['date'][:10]}"


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def git_commit() -> str | None:
    """Commit of the checkout this package lies in, "-dirty" if changed since; None if installed."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = [
        "git",
        "--no-optional-locks",
        "-C",
        str(here),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def hardware() -> str:
    """One line: the GPUs if there are any, else the CPU and how many threads torch uses."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def cpu_name() -> str:
    """The processor's own name and its family where the system tells them, else its kind.

    "AMD EPYC (family 26 model 17)": virtual machines leave the generation out of the name, the family tells it.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in lines)
    entries = {name.strip(): value.strip() for name, _, value in pairs}
    if "model name" not in entries:
        return platform.processor() or platform.machine()
    if "cpu family" not in entries:
        return entries["model name"]
    return f"{entries['model name']} (family {entries['cpu family']} model {entries.get('model')})"
