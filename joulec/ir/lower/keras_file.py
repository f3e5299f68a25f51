"""Looking into `.keras` and `.h5` files before Keras may load them: no code, no bombs, nothing outside the file."""

from __future__ import annotations

import io
import json
import zipfile
from collections import deque
from pathlib import Path, PurePosixPath
from typing import Any

from joulec.errors import InputError, missing_extra

CODE = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"})
"""Classes whose configuration holds code, or names files with code."""

MAX_RATIO = 200
"""A zip member may expand to this many times its stored size (weights hardly compress at all)."""

MAX_MEMBER = 8 << 30
MAX_CONFIG = 256 << 20


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


def _inspect_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = PurePosixPath(member.filename)
            if name.is_absolute() or ".." in name.parts:
                raise InputError(f"{path}: member '{member.filename}' leads outside the archive")
            if member.file_size > MAX_MEMBER or member.file_size > MAX_RATIO * max(member.compress_size, 1024):
                raise InputError(f"{path}: member '{member.filename}' expands to {member.file_size} bytes; refused")
            if name.suffix == ".h5":
                _inspect_hdf5(io.BytesIO(archive.read(member)), f"{path}: {member.filename}")
        if archive.getinfo("config.json").file_size > MAX_CONFIG:
            raise InputError(f"{path}: config.json is larger than {MAX_CONFIG >> 20} MiB")
        return _json(archive.read("config.json"), f"{path}: config.json")


def _json(data: bytes | str, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error


def _inspect_hdf5(stream: Any, where: str) -> Any:
    """Walk all links without following those that leave the file; returns the model's configuration, if any."""
    try:
        import h5py
    except ImportError:
        raise missing_extra("h5py", "tensorflow", "reading HDF5") from None
    try:
        with h5py.File(stream, "r") as file:
            groups = deque([file])
            while groups:
                group = groups.popleft()
                groups.extend(_inspect_group(group, h5py, where))
            config = file.attrs.get("model_config")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{where}: a damaged HDF5 file ({error})") from error
    return None if config is None else _json(config, f"{where}: model_config")


def _inspect_group(group: Any, h5py: Any, where: str) -> list[Any]:
    inner = []
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{where}: '{group.name}/{name}' is a link ({type(link).__name__}); refused")
        item = group[name]
        if isinstance(item, h5py.Group):
            inner.append(item)
        elif item.external or item.is_virtual:
            raise InputError(f"{where}: dataset '{item.name}' is stored outside the file; refused")
    return inner


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
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
