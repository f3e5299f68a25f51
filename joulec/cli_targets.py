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


def package(
    artefact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="What 'joulec optimize -o' wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder to write into.")],
    form: Annotated[
        str, typer.Option("--for", metavar="FORM", help="triton: a model repository; edge: an .ort file.")
    ] = "triton",
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", show_default=False, help="Its name; else the artefact's.")
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            "--engines", metavar="DIR", show_default=False,
            help="Where the server keeps TensorRT's engines from start to start (triton, tensorrt).",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write an artefact in the form that a server or a small device wants.

    triton: DIR/NAME/config.pbtxt and DIR/NAME/1/model.onnx for Triton Inference Server, with the provider's options.
    edge: DIR/NAME.ort and the operators that a minimal build of ONNX Runtime must have (artefacts for the CPU only).
    """
    import sys

    from joulec.backends.deploy import FORMS, edge, triton

    if form not in FORMS:
        raise InputError(f"--for {form}: choose from {', '.join(FORMS)}")
    if engines is not None and form != "triton":
        raise InputError(f"--engines: {form} has none; it is for --for triton")
    called = name or artefact.resolve().name
    written = edge(artefact, out, called) if form == "edge" else triton(artefact, out, called, engines)
    if json:
        print_json({"form": form, "files": [str(file) for file in written]})
        return
    for file in written:
        sys.stdout.write(f"{file}\n")


def place(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or an artefact (best one for cuda).")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", show_default=False, help="Write it as an artefact.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="PROFILE", show_default=False, help="Device profile of the CPU.")
    ] = None,
    device: options.Device = None,
    latency: Annotated[
        str | None, typer.Option("--latency", metavar="TIME", show_default=False, help="At most, as predicted: 5ms.")
    ] = None,
    shape: options.Shape = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Place the nodes of a model on a host with a CPU and a GPU, for the fewest joules within a latency; predicted.

    Shown against all on the CPU and all on the GPU. The artefact's nodes say where they belong; ONNX Runtime follows.
    """
    limits = options.limits(memory_limit, time_limit)
    from joulec.placing import place as placed
    from joulec.report import findings, terminal

    seconds = None if latency is None else options.duration(latency, "--latency")
    found = placed(
        model, out, host=host, device=device, seconds=seconds, shape=options.shapes(shape), limits=limits,
        trust_code=trust_code,
    ).to_json()  # fmt: skip
    if json:
        print_json(found)
    else:
        findings.placements(terminal.console(), found)


def _rules(target: str, json: bool) -> None:
    from joulec.backends import backend
    from joulec.linting import rules_of
    from joulec.report import findings, terminal

    rows = rules_of(backend(target).target.name)
    if json:
        print_json(rows)
    else:
        findings.rules(terminal.console(), rows)
