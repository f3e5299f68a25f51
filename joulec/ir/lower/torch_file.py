"""Looking into `.pt2` files before PyTorch may load them.

`torch.export.load` unpickles without restriction where a file says so, evaluates the text of symbolic sizes, compiles
guards from text, and looks operators up by any dotted name below `torch`. So names and texts are held against lists
here, and `worker` makes every remaining `torch.load` a weights-only one.
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import Any

from joulec.errors import InputError
from joulec.ir.lower import archive

PICKLED = ("custom_obj", "opaque_obj")
COMPILED = ("aotinductor", "executorch", "mtia")

_NAME = r"(?!__)\w+|__i?(?:and|or|xor|lshift|rshift)__"
_OPERATOR = re.compile(
    rf"torch\.ops\.(?:aten|prims|higher_order|quantized_decomposed|onnx|torchvision)\.(?:{_NAME})(?:\.(?!__)\w+)?"
    r"|torch\.sym_\w+|math\.(?!__)\w+"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_|xor)"
)
_FILES = frozenset({"from_file", "save", "load"})
"""Operators of those namespaces that open files."""

_SYMBOLIC = re.compile(r"[\w\s+\-*/(),=<>!'\"%&|~]*(?:\d\.\d+[\w\s+\-*/(),=<>!'\"%&|~]*)*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_WORDS = frozenset(
    (
        "Symbol Integer Rational Float Add Mul Pow Max Min Mod Abs Eq Ne Lt Le Gt Ge And Or Not Where Identity "
        "FloorDiv CeilDiv CleanDiv PythonMod ModularIndexing TruncToInt TruncToFloat RoundToInt FloorToInt CeilToInt "
        "ToFloat IntTrueDiv FloatTrueDiv LShift RShift PowByNatural OpaqueUnaryFn_sqrt "
        "positive nonnegative nonzero negative integer real True False oo int_oo"
    ).split()
)
_SYMBOL = re.compile(r"[a-z]{1,4}\d+")
MAX_EXPRESSION = 4096


def inspect(path: Path, trust_code: bool) -> None:
    """Refuse what a `.pt2` file must not contain.

    Args:
        path: the file.
        trust_code: allow pickled objects, and operators and expressions that are on no list.

    Raises:
        InputError: the first thing that is refused, and how it can be allowed.
    """
    with archive.opened(path, "PyTorch export") as members:
        names = members.namelist()
        if not any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
            raise InputError(
                f"{path}: pickled by torch.save, which holds weights without a graph, or code; "
                "write torch.export.save(torch.export.export(model, inputs), 'model.pt2') instead"
            )
        for name in names if not trust_code else ():
            _refuse_member(name, path)
            if name.endswith(".json"):
                _refuse_code(archive.json_member(path, members, name), path)


def _refuse_member(name: str, path: Path) -> None:
    parts = name.split("/")
    if any(part.startswith(PICKLED) for part in parts):
        raise InputError(f"{path}: member '{name}' is a pickled object, which can run code; --trust-code allows it")
    if any(part in COMPILED for part in parts):
        raise InputError(f"{path}: member '{name}' is compiled code, not an exported program; use torch.export.save")


def _refuse_code(content: Any, path: Path) -> None:
    """Through everything the file says: operators and expressions stand anywhere."""
    pending = deque([content])
    while pending:
        item = pending.popleft()
        if isinstance(item, dict):
            for key, value in item.items():
                if key == "target" and isinstance(value, str):
                    _refuse_operator(value, path)
                elif key == "expr_str" and isinstance(value, str):
                    _refuse_expression(value, path)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _refuse_operator(name: str, path: Path) -> None:
    if not name.startswith(("torch", "_operator", "math", "#")):
        return  # PyTorch takes it for the plain name of a value
    if _OPERATOR.fullmatch(name) is None or not _FILES.isdisjoint(name.split(".")):
        raise InputError(f"{path}: operator '{name}' is none that computes on tensors; --trust-code allows it")


def _refuse_expression(text: str, path: Path) -> None:
    """PyTorch evaluates these as Python: only sizes, arithmetic and sympy's own functions may stand in them."""
    known = all(word in _WORDS or _SYMBOL.fullmatch(word) for word in _WORD.findall(text))
    if len(text) > MAX_EXPRESSION or not known or _SYMBOLIC.fullmatch(text) is None:
        raise InputError(f"{path}: the size '{text[:80]}' is no plain expression; --trust-code allows it")
