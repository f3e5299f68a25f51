"""Reading .npz files row by row: memory of one row, never of the file, and no trust in what the file declares."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from joulec.errors import InputError
from joulec.ir.values import Array

GIB = 1 << 30

EMPTY_ROWS = 1 << 20
"""Rows without numbers cost no bytes, so a tiny file could declare endlessly many; this is where that ends."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1


@dataclass(frozen=True)
class NpzLimits:
    """What one .npz file may expand to.

    Attributes:
        total: bytes of all its arrays together.
        piece: bytes of what is held in memory at once: one row, or one whole array where it is one feed.
    """

    total: int = 64 * GIB
    piece: int = 2 * GIB


@dataclass(frozen=True)
class Member:
    """One array of a file: what its header says.

    Attributes:
        name: the array's name.
        shape: its dimensions.
        dtype: its element type; never an object type.
        fortran: whether columns are stored first.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """The headers of one .npz file, and its arrays read as streams.

    Args:
        path: the file.
        limits: what it may expand to.

    Raises:
        InputError: not an .npz file, damaged, larger than the limits, or holding Python objects.
    """

    def __init__(self, path: Path, limits: NpzLimits | None = None) -> None:
        self.path = path
        self._limits = limits or NpzLimits()
        self.members: dict[str, Member] = {}
        with self._opened() as archive:
            self._check_size(archive)
            for info in archive.infolist():
                if not info.is_dir():
                    member = self._header(archive, info)
                    self.members[member.name] = member

    def whole(self, name: str) -> Array:
        """Array `name`, all of it."""
        member = self._bounded(self.members[name], self.members[name].nbytes)
        with self._opened() as archive, archive.open(f"{name}.npy") as stream:
            _read_header(stream)
            return self._take(stream, member, member.shape)

    def rows(self, name: str) -> Iterator[Array]:
        """Array `name` along its first axis, one row in memory at a time."""
        member = self.members[name]
        if member.fortran:
            # Rows of a column-major array are scattered over the file: it is read whole or not at all.
            yield from self.whole(name)
            return
        self._bounded(member, member.nbytes // max(member.shape[0], 1))
        if not member.nbytes and member.shape[0] > EMPTY_ROWS:
            raise InputError(f"{self.path}: array '{name}' declares {member.shape[0]} rows of nothing")
        with self._opened() as archive, archive.open(f"{name}.npy") as stream:
            _read_header(stream)
            for _ in range(member.shape[0]):
                yield self._take(stream, member, member.shape[1:])

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such file") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise InputError(f"{self.path}: not an .npz file, or a damaged one ({self._hint(error)})") from error

    def _hint(self, error: Exception) -> str:
        with self.path.open("rb") as stream:
            if stream.read(6) == b"\x93NUMPY":
                return "it is a single array; save it with numpy.savez(path, INPUT_NAME=array)"
        return _short(error)

    def _check_size(self, archive: zipfile.ZipFile) -> None:
        declared = sum(info.file_size for info in archive.infolist())
        if declared > self._limits.total:
            raise InputError(
                f"{self.path}: expands to {declared / GIB:.1f} GiB, more than the limit of "
                f"{self._limits.total / GIB:.0f} GiB; use a directory of .npz files"
            )

    def _header(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            raise InputError(f"{self.path}: holds '{info.filename}', which is not an array; save it with numpy.savez")
        if name in self.members:
            raise InputError(f"{self.path}: holds two arrays named '{name}'")
        if info.compress_type not in _METHODS or info.flag_bits & _ENCRYPTED:
            raise InputError(f"{self.path}: array '{name}' is encrypted or compressed in a way that numpy never uses")
        try:
            with archive.open(info) as stream:
                shape, fortran, dtype, start = _read_header(stream)
        except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
            raise InputError(f"{self.path}: array '{name}' is damaged ({_short(error)})") from error
        if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
            raise InputError(f"{self.path}: array '{name}' holds Python objects or records; save plain numbers")
        member = Member(name, shape, dtype, fortran)
        if any(dim < 0 for dim in shape) or member.nbytes != info.file_size - start:
            raise InputError(f"{self.path}: array '{name}' is damaged (its size contradicts its shape {list(shape)})")
        return member

    def _bounded(self, member: Member, size: int) -> Member:
        if size > self._limits.piece:
            raise InputError(
                f"{self.path}: array '{member.name}' needs {size / GIB:.1f} GiB of memory at once, more than the limit "
                f"of {self._limits.piece / GIB:.0f} GiB"
            )
        return member

    def _take(self, stream: IO[bytes], member: Member, shape: tuple[int, ...]) -> Array:
        wanted = math.prod(shape) * member.dtype.itemsize
        try:
            data = stream.read(wanted)
        except (EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path}: array '{member.name}' is damaged ({_short(error)})") from error
        if len(data) != wanted:
            raise InputError(f"{self.path}: array '{member.name}' is cut short")
        flat = np.frombuffer(bytearray(data), member.dtype)
        return flat.reshape(shape, order="F" if member.fortran else "C")


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, column order, dtype and length of the header, leaving `stream` at the first number."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"array format {version[0]}.{version[1]} is not known")
    return shape, fortran, dtype, stream.tell()


def _short(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
