"""Zip archives that hold models: bounded and kept inside themselves before anything in them is read."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from joulec.errors import InputError

MAX_RATIO = 200
"""A zip member may expand to this many times its stored size (weights hardly compress at all)."""

MAX_MEMBER = 8 << 30
MAX_TOTAL = 32 << 30
"""Bytes that all members, or all datasets, may take together."""

MAX_CONFIG = 256 << 20
"""Bytes of a JSON member, which is parsed whole."""


@contextmanager
def opened(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """An archive whose members were checked: bounded sizes, no links, no path that leads outside.

    Args:
        path: the file.
        what: `Keras file`, for errors.

    Raises:
        InputError: the archive is damaged, or a member is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            yield archive
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: a damaged {what} ({error})") from error


def json_member(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    """Parse one member.

    Raises:
        InputError: too large to be a configuration, or not JSON.
    """
    if archive.getinfo(name).file_size > MAX_CONFIG:
        raise InputError(f"{path}: {name} is larger than {MAX_CONFIG >> 20} MiB")
    return parsed(archive.read(name), f"{path}: {name}")


def parsed(data: bytes | str, where: str) -> Any:
    """JSON, or an error that names the place."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    if sum(member.file_size for member in archive.infolist()) > MAX_TOTAL:
        raise InputError(f"{path}: expands to more than {MAX_TOTAL >> 30} GiB; refused")
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: member '{member.filename}' is a symbolic link; refused")
        if name.is_absolute() or ".." in PureWindowsPath(member.filename).parts:
            raise InputError(f"{path}: member '{member.filename}' leads outside the archive")
        if member.file_size > MAX_MEMBER or member.file_size > MAX_RATIO * max(member.compress_size, 1024):
            raise InputError(f"{path}: member '{member.filename}' expands to {member.file_size} bytes; refused")
