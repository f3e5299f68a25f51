"""The command about carbon: `carbon`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from joulec import cli_options as options
from joulec.cli_output import epilog, print_json

CARBON_HELP = epilog(
    "joulec carbon model.onnx --region DE --rate 100/s",
    "joulec carbon build/ --region DE --region FR --region US-CAMX --rate 5k/min --pue 1.2 --embodied 1200kg/4y",
    "joulec carbon --joules 2.5mJ --region WORLD   with joules that you measured",
    "joulec carbon --list                          the regions, each with year, kind and source",
    "A number holds for its region, year and kind of intensity only. Idle time between requests is not in it.",
)

Regions = Annotated[
    list[str] | None,
    typer.Option(
        "--region", metavar="CODE", show_default=False,
        help="Whose electricity: DE, FR, US, US-CAMX (an eGRID subregion), EU, WORLD; repeatable. --list shows all.",
    ),
]  # fmt: skip
Pue = Annotated[
    float,
    typer.Option(
        "--pue", metavar="X",
        help="Energy of the whole data centre over that of its computers: 1.1 to 2. 1.0 counts the computer alone.",
    ),
]  # fmt: skip
Kinds = Annotated[
    str,
    typer.Option(
        "--kind", metavar="KIND",
        help="average: of all generation. marginal: of the plants that answer when demand changes (2021, few regions).",
    ),
]  # fmt: skip
Grids = Annotated[
    Path | None,
    typer.Option("--grids", metavar="FILE.toml", show_default=False, help="A table of grids of your own."),
]


def carbon(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", show_default=False, help="A model, or an artefact's directory.")
    ] = None,
    region: Regions = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", metavar="N/TIME", show_default=False,
            help="Inferences per time, all year: 100/s, 5k/min, 1M/day. Gives emissions per year.",
        ),
    ] = None,
    pue: Pue = 1.0,
    embodied: Annotated[
        str | None,
        typer.Option(
            "--embodied", metavar="KG/YEARS", show_default=False,
            help="What making the hardware emitted, over its life: 1200kg/4y. Not included where not given.",
        ),
    ] = None,
    share: Annotated[
        float, typer.Option("--share", metavar="S", min=0, max=1, help="The part of the hardware that serves this.")
    ] = 1.0,
    kind: Kinds = "average",
    grids: Grids = None,
    joules: Annotated[
        str | None,
        typer.Option(
            "--joules", metavar="E", show_default=False,
            help="Joules per inference as you measured them (2.5mJ), instead of an estimate.",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the regions, with year, kind and source.")] = False,
    target: options.OneTarget = None,
    shape: options.Shape = None,
    device: options.Device = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:  # fmt: skip
    """What inferences of MODEL emit: gCO2e each and, at a rate, in a year (SCI, ISO/IEC 21031).

    Grams are (energy x PUE x the grid's intensity + the hardware's share), per inference. The interval is that of the
    joules; grids differ by the hour, and a yearly number does not show it.
    """
    limits = options.limits(memory_limit, time_limit)
    from joulec import cli_quantities as quantities
    from joulec.report import carbon_tables, terminal

    if list_:
        _list(grids, json)
        return
    from joulec.footprint import carbon as footprint

    found = footprint(
        model, region or (), rate=None if rate is None else quantities.rate(rate), pue=pue,
        embodied=None if embodied is None else quantities.embodied(embodied, share), kind=kind, grids=grids,
        joules=None if joules is None else quantities.joules(joules, "--joules"), target=target,
        shape=options.shapes(shape), device=device, limits=limits, trust_code=trust_code,
    )  # fmt: skip
    told: list[dict[str, Any]] = [one.to_json() for one in found]
    if json:
        print_json(told)
    else:
        carbon_tables.emissions(terminal.console(), model, told)


def _list(grids: Path | None, json: bool) -> None:
    from dataclasses import asdict

    from joulec.energy.carbon import intensities
    from joulec.report import carbon_tables, terminal

    rows = [asdict(one) for one in intensities(grids)]
    if json:
        print_json(rows)
    else:
        carbon_tables.grids(terminal.console(), rows)
