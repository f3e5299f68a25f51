"""The artefact directory: written whole or not at all, checked when it is opened."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from joulec.backends import BACKENDS
from joulec.backends.base import ENGINE_SCRIPT, MODEL_FILE, SESSION_FILE, SessionSettings, write_json
from joulec.errors import InputError, UnavailableError
from joulec.ir import walk
from joulec.ir.machine import INSTRUCTIONS, described
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.session import open_session
from joulec.ir.shapes import first_line
from joulec.ir.values import Array

MANIFEST_FILE, MASKS_FILE, CALIBRATION_FILE = "manifest.json", "masks.npz", "calibration.json"
SOURCE_MASKS_FILE = "masks_source.npz"
DECISIONS_FILE, REPORT_FILE = "decisions.json", "report.html"
MAX_JSON, MAX_SESSION = 1 << 26, 1 << 20
MAX_MEMBER = 1024
"""Bytes of an array's name in an archive; zip itself ends at 65,535."""

FILES = frozenset(
    {
        MODEL_FILE, MODEL_FILE + ".data", SESSION_FILE, MANIFEST_FILE, MASKS_FILE, SOURCE_MASKS_FILE, CALIBRATION_FILE,
        DECISIONS_FILE, REPORT_FILE, ENGINE_SCRIPT,
    }
)  # fmt: skip
"""Everything an artefact may hold: a directory with anything else in it is never replaced."""


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `directory` when the block ends without an error.

    The folder lies beside the destination, so the final renames stay on one file system. On an error it is removed
    and what stood at `directory` is untouched.

    Raises:
        InputError: `directory` exists and is neither empty nor an artefact, or cannot be written.
    """
    destination = Path(directory).absolute()
    require_replaceable(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        yield staging
        staging.chmod(0o755)
        _swap(staging, destination)
    except OSError as error:  # a full disk, most of all: writing a stream names no file
        raise InputError(f"{directory}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def require_replaceable(destination: Path) -> None:
    """Refuse, before any work, a place where an artefact cannot be put or where something of the user's would be lost.

    Raises:
        InputError: something other than an artefact or an empty directory is there, or it cannot be written.
    """
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise InputError(f"{destination}: exists and is not a directory; choose another -o")
    present = sorted(entry.name for entry in destination.iterdir()) if destination.exists() else []
    if present and MANIFEST_FILE not in present:
        raise InputError(f"{destination}: holds files that joulec did not write; choose another -o or empty it")
    foreign = next((name for name in present if name not in FILES), None)
    if foreign is not None:
        raise InputError(f"{destination}: holds '{foreign}', which joulec did not write; move it or choose another -o")
    _require_writable(destination.parent)


def _require_writable(folder: Path) -> None:
    """Whether directories can be made in `folder`, or in the nearest of its parents that exists."""
    existing = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
    if not existing.is_dir():
        raise InputError(f"{existing}: is not a directory; choose another -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: cannot be written (no permission); choose another -o")


def _swap(staging: Path, destination: Path) -> None:
    """Put `staging` at `destination`; whatever fails, one whole directory stands there."""
    if not destination.exists():
        staging.rename(destination)
        return
    old = staging.with_name(staging.name + ".old")
    destination.rename(old)
    try:
        staging.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` whose file (and `<name>.data`) takes its place when the block ends without an error.

    Raises:
        InputError: the folder cannot be written, or something other than a file is there.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: exists and is not a regular file; choose another one")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), reverse=True):  # the data first, the model that refers to it last
            file.replace(path.parent / file.name)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz whose bytes depend only on the arrays (numpy's own carries no time, but pins no order).

    Names come from a model: those that could lead out of a folder when unpacked are spelled by `member_name`.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{member_name(name)}.npy")
            archive.writestr(info, buffer.getvalue(), zipfile.ZIP_DEFLATED)


def member_name(name: str) -> str:
    """The name of an array in an archive, harmless as a path: the name itself for all but odd ones.

    Backslashes, `%`, invisible characters, a leading slash and the dots of `.` and `..` become `%XX`, byte by byte;
    what is too long for an archive is cut and ends in its sha256.
    """
    parts = [part.replace(".", "%2E") if part in (".", "..") else _quoted(part) for part in name.split("/")]
    found = "/".join(parts) if parts[0] else "%2F" + "/".join(parts[1:])
    if len(found.encode()) <= MAX_MEMBER:
        return found
    return f"{found.encode()[: MAX_MEMBER // 2].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()}"


def _quoted(part: str) -> str:
    return "".join(quote(c, "") if c in "%\\" or not c.isprintable() else c for c in part)


def digests(directory: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file in an artefact except its manifest, by name."""
    names = sorted(file.name for file in directory.iterdir() if file.name != MANIFEST_FILE)
    return {name: found for name in names if (found := digest(directory / name)) is not None}


def digest(file: Path) -> dict[str, Any] | None:
    """sha256 and size of a regular file; None if it is none."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": file.stat().st_size}


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """Read a JSON file of at most `limit` bytes.

    Raises:
        InputError: it is missing, not a regular file, too large or not JSON.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: not a regular file")
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise InputError(f"{path}: larger than {limit >> 20} MiB, not one of joulec's files")
        return json.loads(data.decode())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {first_line(error)}") from error


def is_current(directory: Path, key: str) -> bool:
    """Whether `directory` holds an intact artefact that was built under content key `key`."""
    if not (directory / MANIFEST_FILE).is_file():
        return False
    try:
        manifest = read_json(directory / MANIFEST_FILE)
    except InputError:
        return False
    return isinstance(manifest, dict) and manifest.get("key") == key and manifest.get("files") == digests(directory)


def load(
    directory: str | os.PathLike[str], *, threads: int | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (), provider_options: Mapping[str, str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Any:  # fmt: skip
    """Open an artefact as an `onnxruntime.InferenceSession` with its own options.

    The artefact is treated as untrusted: options must be on the allow-lists, no custom-operator library and no
    compiled engine is loaded, every file must lie inside the directory, and be the one that manifest.json names by
    its sha256. That finds damage; who can write the directory can write a fitting manifest too.

    Args:
        directory: what `joulec optimize -o` wrote.
        threads: intra-op threads instead of the artefact's own; 0 leaves it to ONNX Runtime.
        custom_ops: libraries of custom operators that you trust; an artefact cannot name any.
        provider_options: options of the provider beside, or instead of, the artefact's own. `enable_cuda_graph`
            needs inputs and outputs that stay where they are (IOBinding).
        cache: a folder of yours where TensorRT keeps engines and timings from run to run; an artefact cannot name one.

    Raises:
        InputError: not an artefact, one that was changed, or one that asks for something not allowed.
        UnavailableError: the artefact's execution provider is not available on this machine.
    """
    folder = verified(directory)
    found = settings(folder)
    _require_provider(found.provider)
    _warn_of_other_cpu(folder, read_json(folder / MANIFEST_FILE) if (folder / MANIFEST_FILE).exists() else {})
    wanted = found if threads is None else replace(found, threads=threads)
    options = wanted.options(tuple(map(Path, custom_ops)))
    given = {**found.provider_options, **_allowed(found, provider_options or {}), **_kept(found, cache)}
    session = open_session(str(folder / MODEL_FILE), options, [(found.provider, given)])
    if session.get_providers()[0] != found.provider:
        given = session.get_providers()[0]
        raise UnavailableError(f"{folder}: asked for {found.provider}, ONNX Runtime gave {given}")
    return session


def verified(directory: str | os.PathLike[str]) -> Path:
    """The folder of an artefact, after looking at everything in it that is going to be opened.

    Raises:
        InputError: not an artefact, one that was changed, or one that holds a compiled engine.
    """
    folder = Path(directory)
    if not (folder / MODEL_FILE).is_file():
        raise InputError(f"{folder}: no {MODEL_FILE} here; give the directory that 'joulec optimize -o' wrote")
    _require_inside(folder)
    settings(folder)
    _require_unchanged(folder)
    # Checks structure and external data before ONNX Runtime opens anything.
    _require_no_engine(read(folder / MODEL_FILE), folder)
    return folder


def _allowed(found: SessionSettings, options: Mapping[str, str]) -> dict[str, str]:
    """Options of the caller's: as with an artefact's own, ONNX Runtime would ignore a misspelt one."""
    known = next(one.provider_options for one in BACKENDS.values() if one.target.provider == found.provider)
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        listed = ", ".join(sorted(known)) or "none"
        raise InputError(f"provider_options: {found.provider} has no {unknown!r} here; known: {listed}")
    return {name: str(value) for name, value in options.items()}


def _kept(found: SessionSettings, cache: str | os.PathLike[str] | None) -> dict[str, str]:
    options = {} if cache is None else cached(found, str(cache))
    if cache is not None and options:
        Path(cache).mkdir(parents=True, exist_ok=True)
    return options


def cached(found: SessionSettings, cache: str) -> dict[str, str]:
    """The options that make TensorRT keep engines and timings in the folder `cache`; none for other providers."""
    if found.provider != BACKENDS["tensorrt"].target.provider:
        return {}
    kinds = ("trt_engine_cache", "trt_timing_cache")
    return {f"{kind}_{key}": value for kind in kinds for key, value in (("enable", "1"), ("path", cache))}


_OPENED = (MODEL_FILE, f"{MODEL_FILE}.data", SESSION_FILE, MANIFEST_FILE)
"""What `load` reads."""


def _require_inside(folder: Path) -> None:
    inside = folder.resolve()
    for name in _OPENED:
        if not (folder / name).resolve().is_relative_to(inside):
            raise InputError(f"{folder / name}: links to a file outside the artefact")


def _require_unchanged(folder: Path) -> None:
    """Compare what will be opened with the manifest, where there is one: a server may hold only model and session."""
    if not (folder / MANIFEST_FILE).exists():
        return
    manifest = read_json(folder / MANIFEST_FILE)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise InputError(f"{folder / MANIFEST_FILE}: not a manifest of joulec's")
    for name in _OPENED[:-1]:
        if files.get(name) != digest(folder / name):
            raise InputError(f"{folder / name}: is not the file that {MANIFEST_FILE} names; build the artefact again")


def _warn_of_other_cpu(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Say where this CPU has other instructions than the one that the artefact's choices were measured on."""
    built = manifest.get("cpu")
    if not isinstance(built, Mapping) or not isinstance(built.get("instructions"), list):
        return
    here = described()["instructions"]
    there = [name for name in INSTRUCTIONS if name in built["instructions"]]
    if there == here:
        return
    one, other = (", ".join(names) or "none of those that count" for names in (there, here))
    said = f"what is in it was chosen on a CPU with {one}; this one has {other}"
    warnings.warn(f"{folder}: {said}: right, but perhaps not the fastest; build it again here", stacklevel=3)


def _require_no_engine(module: Module, folder: Path) -> None:
    """EPContext nodes hold or name a provider's compiled engine: code, not a model."""
    for node in walk.nodes(module.model):
        if node.op_type == "EPContext":
            raise InputError(f"{folder / MODEL_FILE}: {walk.label(node)} holds a compiled engine, which is not loaded")


def settings(folder: Path) -> SessionSettings:
    """How an artefact wants to be opened.

    Raises:
        InputError: no session.json, or one that asks for something not allowed.
    """
    path = folder / SESSION_FILE
    data = read_json(path, MAX_SESSION)
    provider = data.get("provider") if isinstance(data, dict) else None
    for backend in BACKENDS.values():
        if backend.target.provider == provider:
            return SessionSettings.from_json(data, str(path), backend.provider_options)
    raise InputError(f"{path}: provider {provider!r} is not one joulec emits for")


def _require_provider(provider: str) -> None:
    try:
        import onnxruntime as ort
    except ImportError:
        raise UnavailableError("loading an artefact needs onnxruntime: pip install 'joulec[cpu]'") from None
    if provider not in ort.get_available_providers():
        raise UnavailableError(f"{provider} is not in this onnxruntime ({', '.join(ort.get_available_providers())})")


def write_manifest(
    directory: Path, key: str, target: str, report: Mapping[str, Any], version: str, measured_here: bool = False
) -> None:
    """Write manifest.json last, over everything else in `directory`.

    Args:
        directory: the artefact.
        key: content key of the build.
        target: whom it is for.
        report: as JSON.
        version: joulec's.
        measured_here: whether its choices were measured on this CPU, which is recorded then.
    """
    about = {"joulec": version, "key": key, "target": target, "cpu": described() if measured_here else None}
    write_json(directory / MANIFEST_FILE, {**about, "files": digests(directory), "report": dict(report)})
