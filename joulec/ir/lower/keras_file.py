"""Looking into `.keras` and `.h5` files before Keras may load them: no code, no bombs, nothing outside the file."""

from __future__ import annotations

import builtins
import hashlib
import io
from collections import deque
from pathlib import Path
from typing import Any

from joulec.errors import InputError, missing_extra
from joulec.ir.lower import archive
from joulec.ir.lower.tensorflow import tensorflow
from joulec.ir.shapes import first_line

CODE = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"})
"""Classes whose configuration holds code, or names files with code."""

FREE_BYTES = 64 << 20
"""HDF5 datasets may declare this much beyond `archive.MAX_RATIO` times the file."""

HOMES = frozenset(
    {
        "activations", "applications", "backend", "constraints", "dtype_policies", "engine", "initializers", "layers",
        "legacy", "losses", "metrics", "models", "ops", "optimizers", "quantizers", "random", "regularizers",
    }
)  # fmt: skip
"""Rooms of Keras that hold layers and their like. Elsewhere (`keras.utils.get_file`) are functions that act."""

FUNCTION_HOMES = frozenset({"activations", "constraints", "initializers", "losses", "metrics", "regularizers"})


def inspect(path: Path, kind: str, trust_code: bool) -> None:
    """Refuse what a Keras file must not contain.

    Args:
        path: the file.
        kind: `keras` or `h5`.
        trust_code: allow classes that carry code.

    Raises:
        InputError: the first thing that is refused, and how it can be allowed.
    """
    config = _inspect_archive(path) if kind == "keras" else _inspect_hdf5(path, str(path))
    if config is not None and not trust_code:
        _refuse_code(config, path)


def load(path: Path, kind: str, folder: Path, trust_code: bool) -> Any:
    """Inspect a Keras file, then let Keras load it, without what it was compiled with.

    Args:
        path: the file.
        kind: `keras` or `h5`.
        folder: a place for a link, for Keras goes by the extension and joulec by the content. The caller removes it.
        trust_code: allow classes that carry code.

    Raises:
        InputError: it is refused, or Keras cannot load it.
    """
    inspect(path, kind, trust_code)
    tensorflow()
    import keras

    try:
        return keras.models.load_model(_named(path, kind, folder), compile=False, safe_mode=not trust_code)
    except Exception as error:
        raise InputError(f"{path}: Keras cannot load it: {first_line(error)}") from error


def _named(path: Path, kind: str, folder: Path) -> Path:
    """The file under a name that Keras takes."""
    suffix = {"keras": ".keras", "h5": ".h5"}[kind]
    if path.suffix == suffix:
        return path
    link = folder / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}{suffix}"
    link.symlink_to(path.absolute())
    return link


def _inspect_archive(path: Path) -> Any:
    with archive.opened(path, "Keras file") as members:
        for name in members.namelist():
            if name.endswith(".h5"):
                _inspect_hdf5(io.BytesIO(members.read(name)), f"{path}: {name}")
        return archive.json_member(path, members, "config.json")


def _inspect_hdf5(stream: Any, where: str) -> Any:
    """Walk all links without following those that leave the file; returns the model's configuration, if any."""
    try:
        import h5py
    except ImportError:
        raise missing_extra("h5py", "tensorflow", "reading HDF5") from None
    try:
        with h5py.File(stream, "r") as file:
            groups, seen, size = deque([file]), set[int](), 0
            while groups:
                group = groups.popleft()
                address = h5py.h5o.get_info(group.id).addr
                if address in seen:  # hard links may form cycles
                    continue
                seen.add(address)
                inner, found = _inspect_group(group, h5py, where)
                groups.extend(inner)
                size += found
            stored = file.id.get_filesize()
            if size > min(archive.MAX_RATIO * stored + FREE_BYTES, archive.MAX_TOTAL):
                raise InputError(f"{where}: its datasets declare {size} bytes in a file of {stored}; refused")
            config = file.attrs.get("model_config")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{where}: a damaged HDF5 file ({error})") from error
    return None if config is None else archive.parsed(config, f"{where}: model_config")


def _inspect_group(group: Any, h5py: Any, where: str) -> tuple[list[Any], int]:
    """The groups directly inside, and the bytes that the datasets inside declare."""
    inner, size = [], 0
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{where}: '{group.name}/{name}' is a link ({type(link).__name__}); refused")
        item = group[name]
        if isinstance(item, h5py.Group):
            inner.append(item)
            continue
        if not isinstance(item, h5py.Dataset):
            continue
        if item.external or item.is_virtual:
            raise InputError(f"{where}: dataset '{item.name}' is stored outside the file; refused")
        size += int(item.nbytes)
    return inner, size


def _refuse_code(config: Any, path: Path) -> None:
    """Breadth-first through the whole configuration: layers hide in nested models, wrappers and lists."""
    pending = deque([config])
    while pending:
        item = pending.popleft()
        if isinstance(item, dict):
            name = item.get("class_name")
            if isinstance(name, str) and name in CODE:
                layer = item.get("config")
                label = layer.get("name") if isinstance(layer, dict) else None
                said = f"{path}: layer '{label or name}' is a {name}, which carries code"
                raise InputError(f"{said}; --trust-code allows it")
            _refuse_foreign(item, path)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _refuse_foreign(item: dict[str, Any], path: Path) -> None:
    """Keras imports the modules that a configuration names, and opens the vocabulary files: only its own, and none."""
    if "__lambda__" in item:
        raise InputError(f"{path}: a lambda in the configuration carries code; --trust-code allows it")
    if isinstance(item.get("vocabulary"), str):
        raise InputError(f"{path}: a layer reads the file '{item['vocabulary']}'; --trust-code allows it")
    name, module = item.get("class_name"), item.get("module")
    if not isinstance(name, str) or "config" not in item:
        return
    if name == "function":
        harmless = module in (None, "builtins") and not hasattr(builtins, str(item["config"]))
        if not harmless and not _at_home(module, FUNCTION_HOMES):
            raise InputError(f"{path}: custom function '{item['config']}' ({module}): lower the live model from Python")
    elif module is not None and not _at_home(module, HOMES):
        raise InputError(f"{path}: custom class '{name}' ({module}): lower the live model from Python")
    elif module is None and ">" in f"{name}{item.get('registered_name') or ''}":
        raise InputError(f"{path}: custom class '{name}': lower the live model from Python")


def _at_home(module: Any, homes: frozenset[str]) -> bool:
    parts = str(module).split(".")
    if parts[0] != "keras":
        return False
    inner = parts[2:] if parts[1:2] == ["src"] else parts[1:]
    return not inner or inner[0] in homes
