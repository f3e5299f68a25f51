"""Ranges as text: calibration.json of an artefact, and the cache that spares a second build its calibration."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir import walk
from joulec.ir.feeds import Feed
from joulec.ir.module import Choice, Module, Range
from joulec.key import content_key

VERSION = 2
MAX_BYTES = 1 << 26
_OPTIONAL = ("sqnr", "saturated", "smallest", "largest", "shift")


def to_json(ranges: Mapping[str, Range]) -> str:
    """The text of `calibration.json`: ranges by value name, in order of name, each with what other methods give."""
    rows = {name: _row(one) for name, one in sorted(ranges.items())}
    return json.dumps({"version": VERSION, "ranges": rows}, indent=1, allow_nan=False) + "\n"


def _row(one: Range) -> dict[str, Any]:
    row: dict[str, Any] = {"low": one.low, "high": one.high, "method": one.method}
    row.update((name, value) for name in _OPTIONAL if (value := getattr(one, name)) is not None)
    if one.choices:
        row["choices"] = {c.method: [c.low, c.high, c.sqnr, c.unseen] for c in one.choices}
    return row


def from_json(text: str) -> dict[str, Range]:
    """Read what `to_json` wrote, now or in an earlier version.

    Raises:
        InputError: the text is not such a file.
    """
    try:
        rows = json.loads(text)["ranges"]
        ranges = {str(name): _range(row) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"calibration.json: not a file of joulec ({type(error).__name__}: {error})") from error
    for name, one in ranges.items():
        for low, high in ((one.low, one.high), *((c.low, c.high) for c in one.choices)):
            if not (np.isfinite(low) and np.isfinite(high) and low <= high):
                raise InputError(f"calibration.json: the range of '{name}' is not an interval")
    return ranges


def _range(row: Mapping[str, Any]) -> Range:
    given = {name: float(row[name]) for name in _OPTIONAL if name in row}
    choices = tuple(Choice(str(name), *map(float, numbers)) for name, numbers in row.get("choices", {}).items())
    return Range(float(str(row["low"])), float(str(row["high"])), str(row["method"]), choices=choices, **given)


# -- the cache ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kept:
    """What one calibration found.

    Attributes:
        ranges: by value name.
        broken: value name -> what was not finite in it, and in which feed.
        notes: what there was to say about the data.
    """

    ranges: dict[str, Range]
    broken: dict[str, tuple[str, int]]
    notes: tuple[str, ...]


def calibration_key(module: Module, data: str, options: str) -> str:
    """All that ranges follow from: the model with its weights, the data's digest, the pass with its options."""
    return content_key({"model": module_digest(module), "data": data, "options": options})


def module_digest(module: Module) -> str:
    """sha256 over the graph and its numbers; names of nodes, metadata and annotations do not count. O(bytes)."""
    digest = hashlib.sha256()
    for graph in walk.graphs(module.model):
        digest.update(repr([[v.name for v in values] for values in (graph.inputs, graph.outputs)]).encode())
        for name, value in graph.initializers.items():
            digest.update(repr(name).encode())
            _add_tensor(digest, value.const_value)
        for node in graph:
            _add_node(digest, node)
    return digest.hexdigest()


def _add_node(digest: Any, node: ir.Node) -> None:
    edges = [[v.name if v is not None else None for v in values] for values in (node.inputs, node.outputs)]
    digest.update(repr((node.domain, node.op_type, edges)).encode())
    for name, attribute in sorted(node.attributes.items()):
        digest.update(repr((name, str(attribute.type))).encode())
        if attribute.is_ref():
            digest.update(repr(attribute.ref_attr_name).encode())
        elif attribute.type == ir.AttributeType.TENSOR:
            _add_tensor(digest, attribute.as_tensor())
        elif attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):  # walked on their own
            digest.update(repr(attribute.value).encode())


def _add_tensor(digest: Any, tensor: ir.TensorProtocol | None) -> None:
    if tensor is None:
        return
    digest.update(repr((tensor.dtype, tensor.shape.numpy())).encode())
    if tensor.dtype == ir.DataType.STRING:
        digest.update(repr(tensor.numpy().tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data if tensor.size else b"")


def feed_digest(feed: Feed) -> bytes:
    """sha256 of one feed's arrays, by name."""
    digest = hashlib.sha256()
    for name in sorted(feed):
        array = np.asarray(feed[name])
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.digest()


def whole_digest(parts: Iterable[bytes]) -> str:
    """One digest of many, in their order."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def recall(folder: Path | None, key: str) -> Kept | None:
    """What an earlier calibration under this key found, or None; a file that is damaged is none."""
    if folder is None:
        return None
    try:
        with (folder / f"{key}.json").open("rb") as stream:
            data = json.loads(stream.read(MAX_BYTES).decode())
        broken = {str(name): (str(kind), int(feed)) for name, (kind, feed) in data["broken"].items()}
        return Kept(from_json(json.dumps(data)), broken, tuple(map(str, data["notes"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return None


def remember(folder: Path | None, key: str, kept: Kept) -> None:
    """Keep a calibration for later builds; where the disk does not allow it, the next build calibrates again."""
    if folder is None:
        return
    text = json.loads(to_json(kept.ranges)) | {"order": list(kept.ranges), "broken": kept.broken, "notes": kept.notes}
    staging = folder / f"{key}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging.write_text(json.dumps(text), encoding="utf-8")
        staging.rename(folder / f"{key}.json")
    except OSError:
        with contextlib.suppress(OSError):
            staging.unlink()
