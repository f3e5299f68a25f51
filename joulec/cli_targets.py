"""`joulec targets`: what can be emitted, and what each provider has kernels for."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from joulec import cli_options as options
from joulec.cli_output import print_json


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
