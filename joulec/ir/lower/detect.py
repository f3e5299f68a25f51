"""Which format a path holds, told by its content."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

from joulec.errors import InputError

HDF5 = b"\x89HDF\r\n\x1a\n"


def format_of(path: Path) -> str:
    """`keras`, `h5`, `saved-model`, `tflite`, `torch` or `onnx` (everything else: its reader says what is wrong).

    Raises:
        InputError: nothing there, not a regular file, or a directory or archive that holds no model.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError:  # a zero byte
        raise InputError(f"{path}: not the name of a file") from None
    if stat.S_ISDIR(mode):
        if (path / "saved_model.pb").is_file():
            return "saved-model"
        raise InputError(f"{path}: a directory without saved_model.pb, so not a SavedModel")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: not a regular file")
    with path.open("rb") as stream:
        head = stream.read(8)
    if head == HDF5:
        return "h5"
    if head[4:8] == b"TFL3":
        return "tflite"
    return _archive(path) if head[:4] == b"PK\x03\x04" else "onnx"


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: a damaged archive ({error})") from error
    if "config.json" in names:
        return "keras"
    if any(name.endswith(("data.pkl", "serialized_exported_program.json", "archive_format")) for name in names):
        return "torch"
    raise InputError(f"{path}: a zip archive, but neither a Keras model nor a PyTorch export")
