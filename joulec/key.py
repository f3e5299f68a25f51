"""The content key of a build: everything its result depends on, so that an unchanged build is "up to date" at once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from joulec.errors import InputError
from joulec.ir.machine import cpu

PACKAGES = tuple("joulec numpy onnx onnx-ir onnxruntime onnxruntime-gpu tensorflow tf2onnx keras torch".split())


def content_key(parts: Mapping[str, Any]) -> str:
    """sha256 over options, fingerprints, joulec's code, versions of what it builds on, and the CPU.

    Args:
        parts: JSON-able; fingerprints of files and the value of every option.
    """
    whole = {"parts": parts, "versions": versions(), "source": source(), "cpu": cpu()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """sha256 over a file, or over the names and contents of a SavedModel's regular files, read in chunks.

    Raises:
        InputError: another directory: it may be a whole disk.
    """
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        raise InputError(f"{path}: a directory without saved_model.pb, so not a SavedModel")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    for file in files:
        name = os.fsencode(file.relative_to(path)) if file != path else b""
        with file.open("rb") as stream:
            digest.update(b"%d:%s:" % (len(name), name) + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that a build can depend on; found without importing them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def source() -> str:
    """joulec's own code: between releases, and in an editable install, the version says too little."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            digest.update(str(file.relative_to(root)).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
