"""What a result was made with."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SCORING = 3
"""Version of what studfinder computes from a model's outputs: raised when a measure, an interval or an edit gives other
numbers than before. It is part of what a run is, so no result of before is taken for one of now."""

_PACKAGES = ("studfinder", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
_SCORED = ("torch", "transformers", "tokenizers", "numpy", "scipy")


@cache
def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that numbers depend on; the processor's vector units, the
    threads, and the commit where studfinder runs from a git checkout."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found.update((name, _package(name)) for name in _PACKAGES)
    found.update(_processor())
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def made_on() -> dict[str, str]:
    """What one of several workers computes with: numbers of two may differ where anything here but the host does."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    known = {name: value for name, value in versions().items() if name not in ("python", "platform")}
    return {"host": platform.node(), "device": device, **known}


def scored_with() -> str:
    """A short hash of what a step's value depends on beside the run's identity: versions of the libraries."""
    return key_of({"scoring": SCORING, **{name: _package(name) for name in _SCORED}})


def _processor() -> dict[str, str]:
    import torch

    units = torch.backends.cpu.get_cpu_capability()
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        flags = []
    also = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if name in flags]
    return {"cpu": " ".join([units, *also]), "threads": str(torch.get_num_threads())}


@cache
def _commit() -> str:
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return ""
    try:
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


def key_of(settings: Mapping[str, object]) -> str:
    """A short hash of everything that determines a result."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def now() -> str:
    """ISO time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
