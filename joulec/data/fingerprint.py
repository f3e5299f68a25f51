"""Fingerprints of data: equal exactly when rebuilding with it would see the same numbers."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from joulec.data.userfile import is_function_spec, split_spec, wrap_function
from joulec.errors import InputError
from joulec.ir.feeds import Feeds

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 20


def data_fingerprint(spec: Any, feeds: Feeds | None = None) -> str:
    """The sha256 of the data that `spec` names, read in chunks.

    Files count by their contents, a directory by the names and contents of its .npz files, a function by its name and
    the text of its source file (what that file reads in turn is not seen), `random` by its name. Anything else counts
    by its feeds, which are read once; a generator, which reading would use up, is never the same twice.

    Args:
        spec: what `--data` or `data=` was given.
        feeds: the feeds made from it; with them a generator counts by its feeds too.

    Raises:
        InputError: a file or directory is missing or cannot be read, or `spec` is nothing that holds feeds.
    """
    if isinstance(spec, str) and spec == "random":
        return _digest([b"random"])
    if isinstance(spec, str) and is_function_spec(spec):
        path, name = split_spec(spec)
        return _digest([b"function", name.encode(), file_digest(path).encode()])
    if isinstance(spec, str | Path):
        return _path_digest(Path(spec))
    if callable(spec) and not isinstance(spec, Feeds):
        return _function_digest(spec)
    if not isinstance(spec, Iterable):
        raise InputError(f"data: cannot read feeds from a {type(spec).__name__}")
    if feeds is None and not isinstance(spec, Feeds | Mapping) and iter(spec) is spec:
        return secrets.token_hex(32)
    return _feeds_digest(feeds if feeds is not None else spec)


def file_digest(path: Path) -> str:
    """The sha256 of one file's contents, in hex.

    Raises:
        InputError: the file cannot be read.
    """
    digest = hashlib.sha256()
    _add_file(digest, path)
    return digest.hexdigest()


def _path_digest(path: Path) -> str:
    if not path.is_dir():
        return file_digest(path)
    files = sorted((f for f in path.iterdir() if f.suffix == ".npz" and f.is_file()), key=lambda f: f.name)
    return _digest(part for file in files for part in (file.name.encode(), file_digest(file).encode()))


def _function_digest(function: Callable[..., Any]) -> str:
    return _digest([b"function", wrap_function(function).source.encode()])


def _feeds_digest(feeds: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for feed in [feeds] if isinstance(feeds, Mapping) else feeds:
        for name in feed:
            array = np.asarray(feed[name])
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def _digest(parts: Iterable[bytes]) -> str:
    """Each part is preceded by its length, so that ('ab', 'c') and ('a', 'bc') differ."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _add_file(digest: _Hash, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
