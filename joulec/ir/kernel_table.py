"""Which execution provider has a kernel for a node: a look-up in kernels.tsv, by operator, opset and element types.

The table is data that benchmarks/gpu/kernel_table.py writes: the kernel registries of ONNX Runtime's CPU and CUDA
providers as they report themselves, and what TensorRT's ONNX parser imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx.defs
import onnx_ir as ir

from joulec.ir import walk

TABLE = Path(__file__).with_name("kernels.tsv")
ANY = "*"
"""A type parameter that stands for every input and output."""

_DOMAINS = {"": "onnx", "ai.onnx": "onnx"}


@dataclass(frozen=True)
class Kernel:
    """A range of operator versions, and the element types it takes.

    Attributes:
        since, until: versions of the operator; `until` None has no end.
        types: alternatives; each maps a type parameter of the operator to the element types allowed for it.
    """

    since: int
    until: int | None
    types: tuple[Mapping[str, frozenset[str]], ...]

    @property
    def opsets(self) -> str:
        """`7-12`, or `13+` where there is no end."""
        return f"{self.since}+" if self.until is None else f"{self.since}-{self.until}"


@dataclass(frozen=True)
class KernelTable:
    """The kernels of one provider."""

    provider: str
    kernels: Mapping[tuple[str, str], tuple[Kernel, ...]]
    source: str

    def operators(self, domain: str = "") -> list[str]:
        """The operators of a domain that have a kernel, sorted."""
        return sorted(op for where, op in self.kernels if where == _DOMAINS.get(domain, domain))

    def refusal(
        self, node: ir.Node, imports: Mapping[str, int] | None = None, retyped: Mapping[str, str] | None = None
    ) -> str | None:
        """Why no kernel takes `node`, or None.

        Args:
            node: of a graph whose values are typed; what is not typed is not held against the node.
            imports: opsets by domain; needed for nodes of subgraphs, which import nothing themselves.
            retyped: element types that the node is thought to have instead, such as float -> float16.
        """
        domain = _DOMAINS.get(node.domain, node.domain)
        if domain == "onnx" and node.op_type == "Constant":
            return None  # becomes an initializer when a session loads
        opset = opset_of(node, imports)
        found = self.kernels.get((domain, node.op_type), ())
        if not found:
            expands = self.provider != "tensorrt" and _expands(node, opset)
            return None if expands else f"no {self.provider} kernel for {_named(node)}"
        fitting = [kernel for kernel in found if self._has_version(kernel, node, opset)]
        if not fitting:
            return f"no {self.provider} kernel for {_named(node)} of opset {opset}"
        types = {name: (retyped or {}).get(kind, kind) for name, kind in _types(node, opset)}
        if any(_takes(one, types) for kernel in fitting for one in kernel.types):
            return None
        if self.provider == "cpu" and "float16" in types.values():  # ONNX Runtime casts and computes in float
            return self.refusal(node, imports, {**(retyped or {}), "float16": "float"})
        said = ", ".join(sorted(set(types.values())))
        return f"no {self.provider} kernel for {_named(node)} of opset {opset} with {said}"

    def refusal_of(self, op_type: str, operands: Sequence[ir.Value], opset: int) -> str | None:
        """Why no kernel would take an ONNX operator whose operands, and result, have the types of `operands`."""
        inputs = [ir.Value(name=f"x{index}", type=one.type, shape=one.shape) for index, one in enumerate(operands)]
        made = ir.Value(name="y", type=operands[0].type)
        return self.refusal(ir.Node("", op_type, inputs, outputs=[made]), {"": opset})

    def _has_version(self, kernel: Kernel, node: ir.Node, opset: int) -> bool:
        """As ONNX Runtime matches: a kernel without an end is for the version it names, and for no later one."""
        if self.provider == "tensorrt":
            return kernel.since <= opset <= (kernel.until or opset)
        version = _since(node.op_type, opset) if node.domain in walk.ONNX_DOMAINS else opset
        if kernel.until is None:
            return kernel.since == version or node.domain not in walk.ONNX_DOMAINS
        return kernel.since <= version <= kernel.until


@cache
def kernel_table(provider: str) -> KernelTable:
    """The kernels of `cpu`, `cuda` or `tensorrt`."""
    found: dict[tuple[str, str], list[Kernel]] = {}
    source = ""
    for line in TABLE.read_text(encoding="ascii").splitlines():
        if line.startswith("#"):
            said, _, providers = line[2:].rpartition(": ")
            source = said if provider in providers.split(", ") else source
            continue
        name, domain, op, opsets, types = line.split("\t")
        if name == provider:
            found.setdefault((domain, op), []).append(_kernel(opsets, types))
    return KernelTable(provider, {key: tuple(kernels) for key, kernels in found.items()}, source)


def _kernel(opsets: str, types: str) -> Kernel:
    since, _, until = opsets.rstrip("+").partition("-")
    return Kernel(int(since), int(until) if until else None, tuple(map(_alternative, types.split(" | "))))


def _alternative(text: str) -> dict[str, frozenset[str]]:
    pairs = (part.partition("=") for part in text.split(";") if part)
    return {name: frozenset(kinds.split(",")) for name, _, kinds in pairs}


def _takes(allowed: Mapping[str, frozenset[str]], types: Mapping[str, str]) -> bool:
    if ANY in allowed:
        return all(kind in allowed[ANY] for kind in types.values())
    return all(kind in allowed[name] for name, kind in types.items() if name in allowed)


def opset_of(node: ir.Node, imports: Mapping[str, int] | None = None) -> int:
    """The version of its domain under which `node` is read (1 where nothing is imported)."""
    if imports is None:
        imports = {} if node.graph is None else node.graph.opset_imports
    if node.domain in walk.ONNX_DOMAINS:
        return imports.get("", imports.get("ai.onnx", 1))
    return imports.get(node.domain, 1)


def element_type(value: ir.Value | None) -> str | None:
    """How the table spells the element type of a tensor; None where it is unknown or no tensor."""
    if value is None or value.dtype is None or isinstance(value.type, ir.SequenceType | ir.OptionalType):
        return None
    return str(value.dtype.name).lower()


def _types(node: ir.Node, opset: int) -> Iterator[tuple[str, str]]:
    """(Type parameter, element type) of every typed input and output. The first of a parameter's types counts."""
    schema = schema_of(node.op_type, opset) if node.domain in walk.ONNX_DOMAINS else None
    if schema is None:
        first = next((kind for value in (*node.inputs, *node.outputs) if (kind := element_type(value))), None)
        return iter([] if first is None else [("T", first)])
    pairs = [*_formal(node.outputs, schema.outputs), *_formal(node.inputs, schema.inputs)]
    return ((name, kind) for value, name in pairs if (kind := element_type(value)) is not None)


def _formal(values: Sequence[ir.Value | None], formals: object) -> Iterator[tuple[ir.Value | None, str]]:
    """Each value with the type parameter of its place; what lies beyond the last is variadic, like the last."""
    names = [str(formal.type_str) for formal in formals]  # type: ignore[attr-defined]
    for index, value in enumerate(values):
        if names:
            yield value, names[min(index, len(names) - 1)]


@cache
def schema_of(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """The definition of a standard operator in an opset, or None where there is none."""
    try:
        return onnx.defs.get_schema(op_type, max(opset, 1), "")
    except onnx.defs.SchemaError:
        return None


def _since(op_type: str, opset: int) -> int:
    schema = schema_of(op_type, opset)
    return opset if schema is None else int(schema.since_version)


def _expands(node: ir.Node, opset: int) -> bool:
    """Whether ONNX defines the operator by others, which the runtime then puts in its place."""
    schema = schema_of(node.op_type, opset) if node.domain in walk.ONNX_DOMAINS else None
    has = ("has_function", "has_context_dependent_function")
    return schema is not None and any(getattr(schema, name, False) for name in has)


def _named(node: ir.Node) -> str:
    return node.op_type if node.domain in walk.ONNX_DOMAINS else f"{node.domain}:{node.op_type}"
