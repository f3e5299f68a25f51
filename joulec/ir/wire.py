"""The pipe between joulec and the child that runs untrusted models: JSON headers and raw array bytes, no pickle."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from joulec.ir.values import Array

_LENGTH = struct.Struct("<Q")
MAX_HEADER = 1 << 28


class ClosedError(Exception):
    """The other end went away in the middle of a message."""


def send(stream: BinaryIO, message: dict[str, Any], values: dict[str, Any] | None = None) -> None:
    """Write one message: a JSON object, and named values (arrays, lists or dicts of arrays, None)."""
    blobs: list[Array] = []
    described = {name: _describe(value, blobs) for name, value in (values or {}).items()}
    header = json.dumps({"message": message, "values": described}).encode()
    stream.write(_LENGTH.pack(len(header)))
    stream.write(header)
    for blob in blobs:
        stream.write(blob.tobytes())
    stream.flush()


def receive(stream: BinaryIO, max_bytes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read one message.

    Args:
        stream: the pipe.
        max_bytes: refuse arrays beyond this total: the child may be running hostile code.

    Raises:
        ClosedError: the stream ended, or what came is not a message.
    """
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    if length > MAX_HEADER:
        raise ClosedError("message header too long")
    try:
        header = json.loads(_read(stream, length))
        budget = [max_bytes]
        values = {name: _restore(item, stream, budget) for name, item in header["values"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ClosedError(f"malformed message: {error}") from error
    return header["message"], values


def _describe(value: Any, blobs: list[Array]) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return {"list": [_describe(item, blobs) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_plain(key), _describe(item, blobs)] for key, item in value.items()]}
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        return {"strings": [str(item) for item in array.ravel()], "shape": list(array.shape)}
    blobs.append(array)
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def _plain(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key


def _restore(item: Any, stream: BinaryIO, budget: list[int]) -> Any:
    if item is None:
        return None
    if "list" in item:
        return [_restore(one, stream, budget) for one in item["list"]]
    if "dict" in item:
        return {key: _restore(one, stream, budget) for key, one in item["dict"]}
    shape = tuple(int(dim) for dim in item["shape"])
    if "strings" in item:
        return np.array(item["strings"], dtype=object).reshape(shape)
    dtype = _dtype(item["dtype"])
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    budget[0] -= size
    if size < 0 or budget[0] < 0:
        raise ClosedError("outputs larger than the memory limit")
    return np.frombuffer(bytearray(_read(stream, size)), dtype).reshape(shape)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def _read(stream: BinaryIO, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = stream.read(min(missing, 1 << 24))
        if not part:
            raise ClosedError("the stream ended")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
