"""What a backend is: one target, what it accepts, how a module is emitted for it and how the result is checked."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir.feeds import Feed
from joulec.ir.kernel_table import KernelTable, kernel_table
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.passes.base import Pass
from joulec.passes.target import Target
from joulec.passes.upgrade_opset import UpgradeOpset

Shapes = Mapping[str, int | tuple[int, ...]]
"""Sizes of symbolic dimensions, by symbol or by input."""

MODEL_FILE, SESSION_FILE, ENGINE_SCRIPT = "model.onnx", "session.json", "build_engine.py"

SESSION_KEYS = frozenset(
    {
        "session.intra_op.allow_spinning",
        "session.inter_op.allow_spinning",
        "session.set_denormal_as_zero",
        "session.disable_prepacking",
        "session.layer_assignment_settings",
    }
)
"""Session configuration entries an artefact may set. ONNX Runtime accepts unknown ones silently, so this list is the
only guard; entries that name files or libraries are not on it, because an artefact is untrusted."""

OPTIMIZERS = frozenset({"WeightBiasQuantization"})
"""ONNX Runtime optimizers an artefact may disable."""


@dataclass(frozen=True)
class SessionSettings:
    """What session.json holds: how the artefact wants to be opened.

    Attributes:
        provider: ONNX Runtime's execution provider.
        provider_options: its options, from the backend's allow-list.
        threads: intra-op threads, 0 for ONNX Runtime's default.
        config: session configuration entries, from `SESSION_KEYS`.
        disabled_optimizers: from `OPTIMIZERS`.
        arena: whether activations live in memory that is kept between runs.
        sizes: symbolic dimensions that have one size for good (free-dimension overrides).
    """

    provider: str
    provider_options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    config: Mapping[str, str] = field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()
    arena: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` reads."""
        return {
            "provider": self.provider,
            "provider_options": dict(self.provider_options),
            "threads": self.threads,
            "config": dict(self.config),
            "disabled_optimizers": list(self.disabled_optimizers),
            "arena": self.arena,
            "sizes": dict(self.sizes),
        }

    @classmethod
    def from_json(cls, data: object, where: str, provider_options: frozenset[str]) -> SessionSettings:
        """Read and check a session.json.

        Args:
            data: the parsed JSON.
            where: the file's name, for errors.
            provider_options: the options that the backend allows.

        Raises:
            InputError: a key, type or option that is not on the lists.
        """
        if not isinstance(data, dict) or not isinstance(data.get("provider"), str):
            raise InputError(f"{where}: not a session file (an object with 'provider')")
        unknown = set(data) - set(cls.__dataclass_fields__)
        _allow(where, "key", unknown, frozenset())
        threads = data.get("threads", 1)
        if type(threads) is not int or not 0 <= threads <= 1024:
            raise InputError(f"{where}: threads must be an integer from 0 to 1024")
        options, config = _strings(where, data, "provider_options"), _strings(where, data, "config")
        disabled = data.get("disabled_optimizers", [])
        if not isinstance(disabled, list) or not all(isinstance(name, str) for name in disabled):
            raise InputError(f"{where}: disabled_optimizers must be a list of names")
        _allow(where, "provider option", options, provider_options)
        _allow(where, "session option", config, SESSION_KEYS)
        _allow(where, "disabled optimizer", disabled, OPTIMIZERS)
        arena, sizes = data.get("arena", True), data.get("sizes", {})
        if type(arena) is not bool:
            raise InputError(f"{where}: arena must be true or false")
        if not isinstance(sizes, dict) or not all(type(size) is int and 0 < size < 1 << 31 for size in sizes.values()):
            raise InputError(f"{where}: sizes must map symbols to sizes from 1 up")
        return cls(data["provider"], options, threads, config, tuple(disabled), arena, sizes)

    def options(self, custom_ops: Sequence[Path] = ()) -> SessionOptions:
        """The same settings for a `Runner`."""
        return SessionOptions(
            self.threads, "all", self.config, self.disabled_optimizers, tuple(custom_ops), self.arena, self.sizes
        )


def _strings(where: str, data: Mapping[str, Any], key: str) -> dict[str, str]:
    found = data.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise InputError(f"{where}: {key} must map names to strings")
    return found


def _allow(where: str, what: str, given: Any, allowed: frozenset[str]) -> None:
    for name in given:
        if name not in allowed:
            raise InputError(f"{where}: {what} {name!r} is not allowed in an artefact")


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder of evidence: `passed`, `failed` or `skipped`, and the detail that a reader needs."""

    name: str
    status: str
    detail: str
    binding: bool = True
    """Whether a failure means that nothing is written: not where the artefact is right, but less than it could be."""


@dataclass(frozen=True)
class Artefact:
    """What the ladder of evidence climbs on.

    Attributes:
        module: what was emitted.
        directory: where.
        runner: opens it; what is emitted from an untrusted model is untrusted too.
        obstacle: why the input model itself does not run here, which is not held against the artefact.
        reference: the input model, as lowered.
        feeds: what both are run on; none where they cannot be.
        source: where the feeds come from, in words.
        shapes: sizes that the user named.
        spent: whether a pass that spends accuracy was applied.
    """

    module: Module
    directory: Path
    runner: Runner
    obstacle: str | None = None
    reference: Module | None = None
    feeds: Sequence[Feed] = ()
    source: str = "made-up feeds"
    shapes: Shapes = field(default_factory=dict)
    spent: bool = False


class Backend(ABC):
    """One target."""

    target: Target
    provider_options: frozenset[str] = frozenset()
    """Provider options that an artefact for this target may set."""

    fixes_sizes: bool = False
    """Whether sizes given with `--shape` are fixed in the artefact."""

    @property
    def kernels(self) -> KernelTable:
        """The kernels of this target's provider, as data."""
        return kernel_table(self.target.name)

    def accepts(self, node: ir.Node, imports: Mapping[str, int] | None = None) -> str | None:
        """Why the provider leaves `node` to the CPU, or None where the kernel table has a kernel for it.

        Args:
            node: of a graph whose values are typed.
            imports: opsets by domain; needed for nodes of subgraphs, which import nothing themselves.
        """
        return self.kernels.refusal(node, imports)

    def legalization(self) -> list[Pass]:
        """Passes that must run for this target whatever the user orders, before all others."""
        return [UpgradeOpset()]

    def preferences(self) -> list[Pass]:
        """Exact passes that bring a legal module closer to the target's own form; left out where they do not pay."""
        return []

    def mending(self) -> list[Pass]:
        """Passes that bring a model quantized by another tool into this target's form; none where there are none."""
        return []

    def fitting(self) -> list[Pass]:
        """Passes that bring what was optimized, and perhaps quantized, into the provider's form; always run, last."""
        return []

    @abstractmethod
    def settings(self, threads: int) -> SessionSettings:
        """How the artefact is to be opened."""

    def layouts(self) -> list[Pass]:
        """Passes that may suit the kernels of the processor at hand; kept only where they are measured to be faster."""
        return []

    @abstractmethod
    def describe(self) -> str:
        """One line for `joulec targets`: what is emitted for this target today."""

    def finished(self, module: Module) -> Module:
        """The module exactly as it is written: what is timed must be what is shipped."""
        final = module.clone()
        final.model.ir_version = ir_version_for(final, self.target)
        return final

    def settings_for(self, module: Module, threads: int, shapes: Shapes) -> SessionSettings:
        """How the artefact of `module` is to be opened, given the sizes that the user named."""
        return self.settings(threads)

    def emit(
        self, module: Module, directory: Path, threads: int, shapes: Shapes | None = None,
        session: SessionSettings | None = None,
    ) -> None:  # fmt: skip
        """Write model.onnx (weights beyond 1 GiB beside it) and session.json into `directory`.

        Args:
            module: what is emitted.
            directory: exists, and is empty.
            threads: intra-op threads.
            shapes: sizes that the user named.
            session: how the artefact is to be opened, where that was tuned.
        """
        self.finished(module).save(directory / MODEL_FILE)
        chosen = session or self.settings_for(module, threads, shapes or {})
        write_json(directory / SESSION_FILE, chosen.to_json())

    @abstractmethod
    def check(self, emitted: Artefact) -> list[Rung]:
        """Climb the ladder of evidence; missing rungs are said."""


def ir_version_for(module: Module, target: Target) -> int:
    """The ONNX IR version to emit: the oldest that holds the module's opsets, at least the target's."""
    opsets = [onnx.helper.make_opsetid(domain, v) for domain, v in module.model.opset_imports.items()]
    return int(max(onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True), target.ir_version))


def write_json(path: Path, data: object) -> None:
    """Write JSON the same way everywhere: sorted keys, two spaces, ASCII (names from a model may hold anything)."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
