"""The command for CI: `gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from joulec import cli_options as options
from joulec.cli_output import epilog, print_json
from joulec.errors import BudgetError, InputError
from joulec.report import units

GATE_HELP = epilog(
    "joulec gate build/ --baseline joulec.lock --update   once, then commit joulec.lock",
    "joulec gate build/ --baseline joulec.lock            in CI: exit 3 where the new build costs more",
    "joulec gate build/ --slack energy=5% --slack latency=20%",
    "Compared are: predicted joules of the profile that the lock pins, in pairs; speed against the input model, each "
    "measured in its own build; milliseconds only on the machine of the lock; bytes; accuracy. The build is not "
    "measured again: what its own report says is compared.",
)


def gate(
    artefact: Annotated[str, typer.Argument(metavar="ARTEFACT", help="The directory that 'joulec optimize -o' wrote.")],
    baseline: Annotated[
        Path, typer.Option("--baseline", metavar="FILE", help="The lock file to compare with; text, to be committed.")
    ] = Path("joulec.lock"),
    update: Annotated[
        bool, typer.Option("--update", help="Write what this build costs into the lock file, worse or not.")
    ] = False,
    slack: Annotated[
        list[str] | None,
        typer.Option(
            "--slack", metavar="WHAT=S", show_default=False,
            help="What may get worse, beside noise: energy=1%, size=1%, latency=10% (against the input), "
            "time=25% (milliseconds), accuracy=0.002 (points). Repeatable.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="PROFILE", show_default=False,
            help="The profile that a new lock pins. Default: the target's, the same on every machine.",
        ),
    ] = None,
    json: options.Json = False,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:  # fmt: skip
    """Compare what an artefact costs with a lock file; exit 3 where energy, latency, size or accuracy got worse.

    Worse means beyond noise and slack. The output is a diff by operator, for whoever reviews the change.
    """
    limits, granted = options.limits(memory_limit, time_limit), _slack(slack or ())
    from joulec.gating import gate as compare
    from joulec.report import gate_tables, terminal

    found = compare(artefact, baseline, update=update, device=device, slack=granted, limits=limits)
    if json:
        print_json(found.to_json())
    else:
        gate_tables.gate(terminal.console(), found.to_json())
    if found.regressed and not update:
        said = ", ".join(gate_tables.change(one.to_json()) for one in found.regressed)
        raise BudgetError(f"{units.safe(artefact)} costs more than {units.safe(baseline)} allows: {said}")


def _slack(texts: list[str] | tuple[()]) -> dict[str, float]:
    """`energy=5%` as a share, `accuracy=0.01` in points.

    Raises:
        InputError: not of that form.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value.strip().removesuffix("%")) / (100 if value.strip().endswith("%") else 1)
        except ValueError:
            raise InputError(f"--slack {units.safe(text)}: write a quantity and a share, such as energy=5%") from None
    return found
