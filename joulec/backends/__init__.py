"""One target a file; `backend(name)` finds it."""

from __future__ import annotations

from joulec.backends.base import Backend, Rung, SessionSettings
from joulec.backends.cpu import CpuBackend
from joulec.backends.gpu import CudaBackend, TensorRtBackend
from joulec.errors import InputError

__all__ = ["BACKENDS", "Backend", "Rung", "SessionSettings", "backend"]

BACKENDS: dict[str, Backend] = {b.target.name: b for b in (CpuBackend(), CudaBackend(), TensorRtBackend())}


def backend(name: str) -> Backend:
    """The backend of a target.

    Raises:
        InputError: there is no such target.
    """
    if name not in BACKENDS:
        raise InputError(f"target '{name}' is not known; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name]
