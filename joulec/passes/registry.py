"""Which passes exist: the modules of this package, and the plugins that the user named. No global state."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import joulec.passes
from joulec.errors import InputError
from joulec.passes.base import Pass, RulePass

ENTRY_POINTS = "joulec.passes"
"""The entry-point group in which an installed package offers passes; loaded only when named with `--plugin`."""


def builtin() -> dict[str, type[Pass]]:
    """Every pass that joulec ships: name -> class, in alphabetical order of their files."""
    names = sorted(info.name for info in pkgutil.iter_modules(joulec.passes.__path__) if not info.name.startswith("_"))
    modules = (importlib.import_module(f"joulec.passes.{name}") for name in names)
    return _by_name(kind for module in modules for kind in passes_in(module))


def with_plugins(plugins: Iterable[str | Path]) -> dict[str, type[Pass]]:
    """The built-in passes and those of the named plugins.

    Args:
        plugins: Python files, or names of entry points in the group `joulec.passes`.

    Raises:
        InputError: a plugin is missing, cannot be imported, holds no pass, or redefines a pass.
    """
    known = builtin()
    for plugin in plugins:
        for name, kind in _by_name(_load(str(plugin))).items():
            if name in known:
                raise InputError(f"plugin {plugin}: a pass called '{name}' exists already; rename the class")
            known[name] = kind
    return known


def passes_in(module: ModuleType) -> Iterator[type[Pass]]:
    """Yield the concrete pass classes defined in `module` itself, in order of definition."""
    for kind in vars(module).values():
        if not inspect.isclass(kind) or not issubclass(kind, Pass) or kind.__module__ != module.__name__:
            continue
        if not inspect.isabstract(kind) and kind not in (Pass, RulePass):
            yield kind


def _by_name(kinds: Iterable[type[Pass]]) -> dict[str, type[Pass]]:
    return {kind.pass_name(): kind for kind in kinds}


def _load(plugin: str) -> list[type[Pass]]:
    module = _from_file(Path(plugin)) if plugin.endswith(".py") else _from_entry_point(plugin)
    found = list(passes_in(module))
    if not found:
        raise InputError(f"plugin {plugin}: defines no pass; subclass joulec.Pass as a frozen dataclass")
    return found


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"plugin {path}: no such file")
    name = f"joulec_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"plugin {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there while the file runs
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"plugin {path}: {type(error).__name__}: {error}") from error
    return module


def _from_entry_point(name: str) -> ModuleType:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            loaded = entry.load()
            return loaded if inspect.ismodule(loaded) else sys.modules[loaded.__module__]
    raise InputError(f"plugin {name}: neither a .py file nor an installed entry point of group '{ENTRY_POINTS}'")
