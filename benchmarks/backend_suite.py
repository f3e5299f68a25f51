"""ONNX's own backend tests through joulec: does simplifying change an answer, crash, or refuse?

    python benchmarks/backend_suite.py [--filter conv] [--limit 50] [--peers] [--json suite.json]
    python benchmarks/backend_suite.py --upgrade        (raises the opset instead, and does nothing else)

Every case that plain ONNX Runtime passes is taken twice: as published, and with all inputs but the first made
constants, so that there is something to fold. The simplified model must give the outputs of the plain one (tightly)
and those that the case expects (with the case's own tolerance). Each tool runs in one child process, which is started
anew when it dies, so a crash of the process is counted, not suffered. Cases with random outputs drop out, because ONNX
Runtime does not pass them either.

Exit code 1 if joulec was wrong, crashed or refused anywhere.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
VARIANTS = ("published", "constants")
PEERS = {
    "onnxsim": ("onnxsim", "simplify"),
    "onnxslim": ("onnxslim", "slim"),
    "onnxoptimizer": ("onnxoptimizer", "optimize"),
    "onnxscript": ("onnxscript.optimizer", "optimize"),
}
UPGRADE = "upgrade-opset"
TOOLS = ("joulec", *PEERS, UPGRADE)
TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
"""Largest max|y - y0| / max|y0| between the plain and the simplified model; other types must be equal."""
VERDICTS = ("right", "wrong", "crash", "refused")


@dataclass(frozen=True)
class Case:
    """One model with its feeds and the outputs expected of them."""

    name: str
    model: onnx.ModelProto
    feeds: list[dict[str, Any]]
    expected: list[list[Any]]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Verdict:
    """What became of one variant of one case.

    Attributes:
        verdict: one of `VERDICTS`, or `skipped` where plain ONNX Runtime does not pass the case.
        detail: what went wrong, one line.
        left: nodes of the simplified model that depend on a graph input.
    """

    case: str
    variant: str
    verdict: str
    detail: str = ""
    left: int = 0


# -- the cases ----------------------------------------------------------------------------------------------------


def cases(text: str) -> Iterator[Case]:
    """The backend tests whose name contains `text`, in order."""
    from onnx.backend.test import loader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow on purpose
        found = [case for kind in KINDS for case in loader.load_model_tests(kind=kind)]
    for case in found:
        if text in case.name:
            model = case.model or onnx.load(Path(str(case.model_dir), "model.onnx"))
            yield _with_data(case, model)


def _with_data(case: Any, model: onnx.ModelProto) -> Case:
    names = [value.name for value in model.graph.input]
    sets = case.data_sets if case.data_sets is not None else list(_stored_sets(Path(case.model_dir), model))
    feeds = [dict(zip(names, map(_plain, inputs), strict=False)) for inputs, _ in sets]
    expected = [[_plain(output) for output in outputs] for _, outputs in sets]
    return Case(case.name, model, feeds, expected, case.rtol, case.atol)


def _stored_sets(folder: Path, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    for data in sorted(folder.glob("test_data_set_*")):
        sides = (("input", model.graph.input), ("output", model.graph.output))
        inputs, outputs = (
            [_stored(path, value) for i, value in enumerate(values) if (path := data / f"{side}_{i}.pb").exists()]
            for side, values in sides
        )
        yield inputs, outputs


def _stored(path: Path, value: onnx.ValueInfoProto) -> Any:
    kind = value.type.WhichOneof("value")
    kinds: dict[str, Any] = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    holder = kinds.get(kind or "", onnx.TensorProto)()
    holder.ParseFromString(path.read_bytes())
    if isinstance(holder, onnx.SequenceProto):
        return onnx.numpy_helper.to_list(holder)
    return onnx.numpy_helper.to_optional(holder) if isinstance(holder, onnx.OptionalProto) else _plain(holder)


def _plain(value: Any) -> Any:
    """Arrays, lists of arrays or None: what ONNX Runtime takes."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, np.generic):
        return np.asarray(value)
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def with_constants(case: Case) -> Case:
    """The case with all inputs but the first made initializers, as its first feed has them."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 4)
    keep: list[onnx.ValueInfoProto] = []
    for index, value in enumerate(model.graph.input):
        array = case.feeds[0].get(value.name) if case.feeds else None
        if index == 0 or not isinstance(array, np.ndarray | np.generic) or not value.type.HasField("tensor_type"):
            keep.append(value)
            continue
        tensor = onnx.numpy_helper.from_array(np.asarray(array), value.name)
        if tensor.data_type == value.type.tensor_type.elem_type:
            model.graph.initializer.append(tensor)
        else:
            keep.append(value)
    del model.graph.input[:]
    model.graph.input.extend(keep)
    names = {value.name for value in keep}
    feeds = [{name: array for name, array in feed.items() if name in names} for feed in case.feeds[:1]]
    return Case(case.name, model, feeds, case.expected[:1], case.rtol, case.atol)


# -- the tools ----------------------------------------------------------------------------------------------------


def simplifier(tool: str) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """How `tool` is called with its defaults."""
    if tool == "joulec":
        import joulec

        return joulec.simplify
    if tool == UPGRADE:
        return upgraded
    home, function = PEERS[tool]
    call: Callable[[onnx.ModelProto], Any] = getattr(importlib.import_module(home), function)
    return (lambda model: call(model)[0]) if tool == "onnxsim" else call


def upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at the newest opset that joulec knows, by that pass alone: nothing is rolled back here."""
    from joulec.api import SIMPLIFY
    from joulec.ir.lower import lower
    from joulec.passes.base import Context
    from joulec.passes.opset_adapters import NEWEST
    from joulec.passes.upgrade_opset import UpgradeOpset

    module = lower(model).module
    UpgradeOpset(to=NEWEST).run(module, Context(SIMPLIFY))
    return module.to_proto()


# -- comparing ----------------------------------------------------------------------------------------------------


def outputs_of(model: onnx.ModelProto, feeds: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Plain ONNX Runtime's outputs, with its own defaults, on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def difference(got: Any, want: Any, rtol: float | None = None, atol: float = 0.0) -> str | None:
    """How two outputs differ, or None. Without `rtol`, `TOLERANCE` of the largest magnitude."""
    if isinstance(want, list):
        if not isinstance(got, list) or len(got) != len(want):
            return "another sequence"
        return next((d for g, w in zip(got, want, strict=True) if (d := difference(g, w, rtol, atol))), None)
    if got is None or want is None:
        return None if got is want else "one of them is empty"
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or (got.dtype != want.dtype and "O" not in (got.dtype.kind, want.dtype.kind)):
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if want.dtype.kind in "OSU" or (want.dtype.kind in "biu" and rtol is None):
        return None if np.array_equal(got, want) else "other values"
    return _numeric(got, want, rtol, atol)


def _numeric(got: Any, want: Any, rtol: float | None, atol: float) -> str | None:
    exact = want.dtype.kind == "c" or want.dtype.itemsize == 8
    left, right = (array if exact else array.astype(np.float64) for array in (got, want))
    if rtol is not None:
        return None if np.allclose(left, right, rtol, atol, equal_nan=True) else "not the outputs that are expected"
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return "other NaN or infinities"
    scale = np.abs(right[finite]).max(initial=0.0)
    worst = np.abs(left[finite] - right[finite]).max(initial=0.0)
    allowed = TOLERANCE.get(want.dtype.name, 0.0 if want.dtype.kind != "c" else 1e-5) * scale
    return None if worst <= allowed else f"deviates by {worst:.3g} where the largest is {scale:.3g}"


def judge(tool: Callable[[onnx.ModelProto], onnx.ModelProto], case: Case, variant: str) -> Verdict:
    """Simplify one variant and say what became of it."""
    reference, problem = _reference(case)
    if reference is None:
        return Verdict(case.name, variant, "skipped", problem)
    given = onnx.ModelProto()
    given.CopyFrom(case.model)
    try:
        simplified = tool(given)
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is what is counted here
        refused = type(error).__module__.startswith("joulec")
        return Verdict(case.name, variant, "refused" if refused else "crash", _line(error))
    try:
        got = outputs_of(simplified, case.feeds)
    except Exception as error:  # noqa: BLE001 - a result that does not run is wrong
        return Verdict(case.name, variant, "wrong", f"does not run: {_line(error)}")
    detail = _first_difference(case, got, reference)
    return Verdict(case.name, variant, "wrong" if detail else "right", detail, dependent_nodes(simplified))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _reference(case: Case) -> tuple[list[list[Any]] | None, str]:
    """Plain ONNX Runtime's outputs if it passes the case, else why not."""
    if not case.feeds:
        return None, "no data"
    try:
        reference = outputs_of(case.model, case.feeds)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime does not implement every case
        return None, _line(error)
    problem = _unexpected(case, reference)
    return (None, problem) if problem else (reference, "")


def _unexpected(case: Case, got: list[list[Any]]) -> str:
    pairs = (pair for ours, theirs in zip(got, case.expected, strict=True) for pair in zip(ours, theirs, strict=True))
    return next((d for g, w in pairs if (d := difference(g, w, case.rtol, case.atol))), "")


def _first_difference(case: Case, got: list[list[Any]], reference: list[list[Any]]) -> str:
    if [len(one) for one in got] != [len(one) for one in reference]:
        return "another number of outputs"
    pairs = (pair for ours, theirs in zip(got, reference, strict=True) for pair in zip(ours, theirs, strict=True))
    return next((d for g, w in pairs if (d := difference(g, w))), "") or _unexpected(case, got)


def dependent_nodes(model: onnx.ModelProto) -> int:
    """Nodes of the main graph that compute something from a graph input."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    known = {value.name for value in model.graph.input} - fixed
    count = 0
    for node in model.graph.node:
        if not known.isdisjoint([*node.input, *_captured(node)]):
            count += 1
            known.update(node.output)
    return count


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                yield from inner.input
                yield from _captured(inner)


# -- a child per tool ---------------------------------------------------------------------------------------------


def work(tool: str, text: str, limit: int, first: int) -> None:
    """The child: announce each variant, then print what became of it, as lines of JSON."""
    simplify = simplifier(tool)
    warnings.simplefilter("ignore")
    number = 0
    for count, case in enumerate(cases(text)):
        if limit and count >= limit:
            break
        for variant in VARIANTS:
            if number >= first:
                _say({"begin": [case.name, variant]})
                _say(asdict(judge(simplify, case if variant == "published" else with_constants(case), variant)))
            number += 1


def _say(line: dict[str, Any]) -> None:
    sys.__stdout__.write(f"\n@{json.dumps(line)}\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


@dataclass
class Run:
    """All verdicts of one tool."""

    tool: str
    verdicts: list[Verdict] = field(default_factory=list)

    def of(self, variant: str) -> dict[str, int]:
        """How many of each verdict, and the nodes left, among one variant."""
        mine = [verdict for verdict in self.verdicts if verdict.variant == variant]
        counts = Counter(verdict.verdict for verdict in mine)
        return {**{name: counts[name] for name in (*VERDICTS, "skipped")}, "left": sum(v.left for v in mine)}

    def bad(self) -> list[Verdict]:
        """Everything but right and skipped."""
        return [verdict for verdict in self.verdicts if verdict.verdict not in ("right", "skipped")]


def run_tool(tool: str, text: str, limit: int) -> Run:
    """Run the child until it has seen everything; where it dies, count a crash and go on behind."""
    run = Run(tool)
    while True:
        begun = _run_child(run, text, limit)
        if begun is None:
            return run
        run.verdicts.append(Verdict(*begun, verdict="crash", detail="the process died"))


def _run_child(run: Run, text: str, limit: int) -> tuple[str, str] | None:
    """One child; what it was at when it died, or None if it finished."""
    command = [sys.executable, __file__, "--child", run.tool, "--first", str(len(run.verdicts)), "--filter", text]
    child = subprocess.Popen(
        [*command, "--limit", str(limit)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    begun: tuple[str, str] | None = None
    for line in child.stdout or ():
        if not line.startswith("@"):
            continue
        said = json.loads(line[1:])
        if "begin" in said:
            begun = (said["begin"][0], said["begin"][1])
        else:
            run.verdicts.append(Verdict(**said))
            begun = None
    if child.wait() and begun is None:
        raise SystemExit(f"{run.tool}: its process ended with {child.returncode} outside any case")
    return begun


def table(runs: Sequence[Run]) -> str:
    """The counts, one line a tool and variant."""
    head = ["tool", "variant", *VERDICTS, "skipped", "nodes left"]
    rows = [[run.tool, variant, *map(str, run.of(variant).values())] for run in runs for variant in VARIANTS]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [head, *rows]]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def main() -> int:
    """Parse the command line, run, print, and say by the exit code whether joulec held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N of them")
    parser.add_argument("--peers", action="store_true", help=f"also those installed of {', '.join(PEERS)}")
    parser.add_argument("--upgrade", action="store_true", help="only raise the opset of each case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and all that was not right to FILE")
    parser.add_argument("--child", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        work(given.child, given.filter, given.limit, given.first)
        return 0
    tools = [UPGRADE] if given.upgrade else ["joulec"]
    tools += [tool for tool in PEERS if given.peers and importlib.util.find_spec(tool)]
    runs = [run_tool(tool, given.filter, given.limit) for tool in tools]
    print(table(runs))
    for verdict in runs[0].bad():
        print(f"{verdict.verdict}: {verdict.case} ({verdict.variant}): {verdict.detail}")
    if given.json:
        found = {
            run.tool: {**{variant: run.of(variant) for variant in VARIANTS}, "bad": [asdict(bad) for bad in run.bad()]}
            for run in runs
        }
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if runs[0].bad() else 0


if __name__ == "__main__":
    sys.exit(main())
