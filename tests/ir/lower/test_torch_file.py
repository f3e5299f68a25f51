"""What a .pt2 file asks PyTorch to do is held against lists before PyTorch sees it. No PyTorch needed here."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from joulec.errors import InputError
from joulec.ir.lower import lower
from joulec.ir.lower.torch_file import inspect


def pt2(folder: Path, content: Any = None, **members: bytes) -> Path:
    """An archive laid out as torch.export.save does it."""
    path = folder / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/models/model.json", json.dumps(content or {}))
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def node(target: str) -> dict[str, Any]:
    return {"graph_module": {"graph": {"nodes": [{"target": target, "inputs": []}]}}}


def size(text: str) -> dict[str, Any]:
    return {"graph_module": {"sizes": [{"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}]}}


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.conv2d.default", "torch.ops.aten.__and__.Tensor", "torch.ops.aten.__ior__.Tensor",
        "torch.ops.higher_order.cond", "torch.sym_max", "_operator.mul", "math.ceil", "model_1", "s77",
    ],
)  # fmt: skip
def test_operators_that_compute_are_accepted(tmp_path: Path, target: str) -> None:
    inspect(pt2(tmp_path, node(target)), False)


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load", "torch.load", "torch.ops.load_library", "torch.ops.aten.from_file.default",
        "torch.ops.aten.conv2d.__class__", "torch.ops.aten.__class__.mro", "torch.os.system", "torch.sys.modules.clear",
        "_operator.attrgetter", "_operator.methodcaller", "math.__loader__.load_module", "#custom:op", "torch",
        "torch.ops.mine.op.default",
    ],
)  # fmt: skip
def test_whatever_else_a_name_could_reach_is_refused(tmp_path: Path, target: str) -> None:
    path = pt2(tmp_path, node(target))
    with pytest.raises(InputError, match="is none that computes on tensors; --trust-code allows it"):
        inspect(path, False)
    inspect(path, True)


@pytest.mark.parametrize(
    "text",
    ["s77", "2*s77 + 1", "Symbol('s77', positive=True, integer=True)", "Max(1, s0 - 3)", "FloorDiv(u0, 2)", "0.5*s1"],
)
def test_sizes_are_accepted(tmp_path: Path, text: str) -> None:
    inspect(pt2(tmp_path, size(text)), False)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch x')", "eval('1')", "().__class__", "s0.func", "Symbol('s0').__class__",
        "[x for x in s0]", "lambda: 1", "Symbol\\x28s0", "1;s0", "s0" + "+1" * 3000,
    ],
)  # fmt: skip
def test_text_that_python_would_run_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is no plain expression"):
        inspect(pt2(tmp_path, size(text)), False)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("net/data/constants/custom_obj_0", "a pickled object, which can run code"),
        ("net/data/constants/opaque_obj_0", "a pickled object, which can run code"),
        ("net/data/constants/custom_obj_/../../x", "leads outside the archive"),
        ("net/data/aotinductor/model/m.so", "compiled code"),
    ],
)
def test_objects_and_libraries_are_refused(tmp_path: Path, member: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        inspect(pt2(tmp_path, None, **{member: b"x"}), False)


def test_what_torch_save_wrote_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(InputError, match=r"pickled by torch\.save.*write torch\.export\.save"):
        lower(path)


def test_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/weights/weight_0", bytes(64 << 20))
    with pytest.raises(InputError, match="expands to 67108864 bytes; refused"):
        inspect(path, False)
