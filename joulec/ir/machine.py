"""This machine, as far as what is measured on it depends on it."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any


@cache
def cpu() -> dict[str, Any]:
    """What measurement depends on: the CPU's model, its features, and how many cores this process may use."""
    info = _cpuinfo()
    flags = hashlib.sha256(info.get("flags", "").encode()).hexdigest()[:16]
    model = info.get("model name", platform.processor())
    return {"machine": platform.machine(), "model": model, "features": flags, "cores": len(os.sched_getaffinity(0))}


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def cpu_name() -> str:
    """The CPU as one text: model, a hash of its features, and the cores that this process may use."""
    found = cpu()
    return f"{found['model']} ({found['machine']}, features {found['features']}, {found['cores']} cores)"


INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instruction sets that ONNX Runtime has integer and float kernels of their own for."""


def described() -> dict[str, Any]:
    """This CPU as a manifest holds it: what measurements depend on, the instruction sets by name."""
    found, flags = cpu(), cpu_flags()
    sets = [name for name in INSTRUCTIONS if name in flags]
    return {"model": found["model"], "machine": found["machine"], "cores": found["cores"], "instructions": sets}


def cpu_flags() -> frozenset[str]:
    """The instruction sets that Linux lists for this CPU; empty where it lists none."""
    found = _cpuinfo()
    return frozenset(found.get("flags", found.get("Features", "")).split())


def cache_sizes() -> list[int]:
    """Bytes of the first core's data caches, level by level, as Linux tells them; empty where it tells none."""
    found: dict[int, int] = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue  # a container may hide them; what is missing is not guessed
        if kind in ("Data", "Unified") and level.isdecimal() and size[:-1].isdecimal():
            found[int(level)] = int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
    return [found[level] for level in sorted(found)]
