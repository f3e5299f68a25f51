"""`joulec targets` and `joulec lint`: what each provider takes, and what it has against a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from joulec import cli_options as options
from joulec.cli_output import print_json
from joulec.errors import CheckError, InputError


def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", show_default=False, help="Show this target's kernels: operators, opsets, types."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the targets: what is emitted for each, whether this machine can run it, and how many kernels are known."""
    from joulec.backends import BACKENDS, backend
    from joulec.report import terminal

    if name is not None:
        found = _kernels(backend(name))
        if json:
            print_json(found)
        else:
            terminal.kernel_list(terminal.console(), found)
        return
    here = _providers()
    every = [_target(one, here) for one in BACKENDS.values()]
    if json:
        print_json(every)
    else:
        terminal.target_table(terminal.console(), every)


def _target(one: Any, here: list[str]) -> dict[str, Any]:
    target, table = one.target, one.kernels
    return {
        "name": target.name, "provider": target.provider, "here": target.provider in here, "opset": target.opset,
        "emits": one.describe(), "operators": len(table.operators()), "kernel_table": table.source,
    }  # fmt: skip


def _kernels(one: Any) -> dict[str, Any]:
    """Every kernel of a target, in the order of its table."""
    rows = [
        {
            "domain": "" if domain == "onnx" else domain, "operator": op, "opsets": kernel.opsets,
            "types": [{key: sorted(kinds) for key, kinds in types.items()} for types in kernel.types],
        }
        for (domain, op), kernels in one.kernels.kernels.items() for kernel in kernels
    ]  # fmt: skip
    return {"name": one.target.name, "kernel_table": one.kernels.source, "kernels": rows}


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def lint(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model that anybody quantized, or an artefact.")] = "",
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="Whose rules: tensorrt, cuda or cpu.")
    ] = "tensorrt",
    fix: Annotated[
        Path | None,
        typer.Option("--fix", metavar="OUT.onnx", show_default=False, help="Write the model mended (tensorrt)."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 for warnings too.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules of the target instead.")] = False,
    data: options.Data = None,
    shape: options.Shape = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    custom_ops: options.CustomOps = None,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Say what a target has against a model, rule by rule; exit 4 where it would refuse it.

    --fix writes the model with the rules applied: integer operators become Q/DQ, integers signed and symmetric,
    biases float, and pairs stand where the target fuses them.
    """
    from joulec.report import findings, terminal

    if rules:
        _rules(target, json)
        return
    if not model:
        raise InputError("no model: write 'joulec lint MODEL --target tensorrt'")
    limits = options.limits(memory_limit, time_limit)
    from joulec.linting import check

    found = check(
        model, target, fix, shape=options.shapes(shape), data=data, limits=limits, trust_code=trust_code,
        custom_ops=custom_ops or (),
    )  # fmt: skip
    if json:
        print_json({**found.to_json(), "ok": found.ok(strict)})
    else:
        findings.linted(terminal.console(), found.to_json())
    if not found.ok(strict):
        raise typer.Exit(CheckError.exit_code)


def _rules(target: str, json: bool) -> None:
    from joulec.backends import backend
    from joulec.linting import rules_of
    from joulec.report import findings, terminal

    rows = rules_of(backend(target).target.name)
    if json:
        print_json(rows)
    else:
        findings.rules(terminal.console(), rows)
