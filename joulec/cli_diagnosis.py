"""The commands that tell why: `explain` and `bisect`. They are registered, with their examples, in joulec.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from joulec import cli_options as options
from joulec.cli_output import print_json
from joulec.errors import CheckError


def explain(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="What simplify or optimize wrote, or a model as it was.")
    ],
    node: Annotated[
        str | None,
        typer.Argument(metavar="NODE", show_default=False, help="Only this node: its name, or a value it computes."),
    ] = None,
    shape: options.Shape = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    custom_ops: options.CustomOps = None,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Tell where nodes come from, what the exact passes would do to them, and what nearly matched, and why not."""
    limits = options.limits(memory_limit, time_limit)
    from joulec.explaining import explain as tell
    from joulec.report import findings, terminal
    from joulec.report.progress import Watcher

    with Watcher(quiet=json) as watch:
        found = tell(
            model, node, shape=options.shapes(shape), limits=limits, trust_code=trust_code,
            custom_ops=custom_ops or (), progress=watch,
        ).to_json()  # fmt: skip
    if json:
        print_json(found)
    else:
        findings.explanation(terminal.console(), found, node)


def bisect(
    model: Annotated[str, typer.Argument(metavar="IN", help="The model, in any format that optimize takes.")],
    data: options.Data = None,
    passes: options.Passes = None,
    plugin: options.Plugin = None,
    out: options.Minimal = None,
    target: options.BisectTarget = None,
    shape: options.Shape = None,
    seed: options.Seed = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    custom_ops: options.CustomOps = None,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Find the first pass, then the single rewrite, that changes the outputs; write a small model that shows it."""
    limits = options.limits(memory_limit, time_limit)
    from joulec.bisecting import bisect as search
    from joulec.report import findings, terminal
    from joulec.report.progress import Watcher

    place = Path(f"{Path(model).stem}-minimal.onnx") if out is None else out
    with Watcher(quiet=json) as watch:
        found = search(
            model, data, passes, out=place, plugins=plugin or (), target=target, shape=options.shapes(shape),
            limits=limits, trust_code=trust_code, custom_ops=custom_ops or (), seed=seed or 0, progress=watch,
        ).to_json()  # fmt: skip
    if json:
        print_json(found)
    else:
        findings.bisection(terminal.console(), found)
    if found["culprit"] is not None:
        raise typer.Exit(CheckError.exit_code)
