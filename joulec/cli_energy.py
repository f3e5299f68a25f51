"""The commands about energy: `estimate`, `measure`, `devices` and `calibrate-device`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulec import cli_carbon
from joulec import cli_options as options
from joulec.cli_output import epilog, print_json
from joulec.errors import InputError
from joulec.report import units

if TYPE_CHECKING:
    from joulec.energy import Estimate

ESTIMATE_HELP = epilog(
    "joulec estimate model.onnx --shape batch=8", "joulec estimate build/ --target tensorrt --device h100 --json",
    "joulec estimate model.onnx --region DE --pue 1.2   grams of CO2e too; more of it: joulec carbon --help",
    "joulec estimate model.onnx --shape batch=1..64   joules per sample at every batch size",
    "joulec estimate model.onnx --html costs.html   a page to look at",
)
MEASURE_HELP = epilog("joulec measure build/ --against model.onnx --data calib.npz", "joulec measure model.onnx --json")
DEVICES_HELP = epilog("joulec devices", "joulec devices h100 --json")
CALIBRATE_HELP = epilog("joulec calibrate-device --quick", "joulec estimate model.onnx --shape batch=8")


def estimate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or an artefact's directory.")],
    target: options.OneTarget = None,
    shape: options.Shape = None,
    device: options.Device = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=0, help="How many nodes to list; 0 lists all.")] = 30,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="OUT.html", show_default=False,
            help="Write a page to look at: where the joules go by operator and layer, and the roofline. Works offline.",
        ),
    ] = None,
    region: cli_carbon.Regions = None,
    pue: cli_carbon.Pue = 1.0,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Price every node in joules, without running the model; costliest first."""
    limits = options.limits(memory_limit, time_limit)
    from joulec import api, pages
    from joulec.report import carbon_tables, energy_tables, terminal

    place = None if html is None else _page_place(html)
    asked = model, target, options.shapes(shape), device
    priced = pages.price(*asked, limits=limits, trust_code=trust_code)
    if place is not None:
        priced.page().save(place)
    found, emitted = priced.to_json(), _emitted(priced.estimate, region or (), pue)
    swept = [_point(*one) for one in api.sweep(*asked, limits=limits, trust_code=trust_code)]
    if json:
        print_json({**found, **({"carbon": emitted} if region else {}), **({"sweep": swept} if swept else {})})
        return
    terminal.estimate_table(terminal.console(), priced.name, found, top or None)
    if swept:
        energy_tables.swept(terminal.console(), swept)
    for one in emitted:
        terminal.console().print(carbon_tables.line(one))
    if html is not None:
        terminal.place(terminal.console(), "page", html)


def _point(shape: Mapping[str, Any], priced: Estimate) -> dict[str, Any]:
    """One size of a sweep."""
    kept = ("total_joules", "low", "high", "samples", "joules_per_sample", "seconds")
    told = priced.to_json()
    return {"shape": dict(shape), **{name: told[name] for name in kept}}


def _emitted(priced: Estimate, regions: Sequence[str], pue: float) -> list[dict[str, Any]]:
    """What an inference emits in each region."""
    from joulec.energy.carbon import intensity_of
    from joulec.footprint import of_estimate

    return [of_estimate(priced, intensity_of(region), pue=pue).to_json() for region in regions]


def _page_place(html: Path) -> Path:
    """Where the page goes, refused before any work where it cannot go there."""
    from joulec.api import writable_file

    place = writable_file(html)
    if place.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html {units.safe(html)}: name a file that ends in .html")
    return place


def measure(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or an artefact's directory.")],
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="OTHER", show_default=False, help="Compare with this one. Default: itself, the noise."
        ),
    ] = None,
    data: options.Data = None,
    shape: options.Shape = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0.1, max=3600, help="About how long to time.")
    ] = 4.0,
    threads: options.Threads = None,
    seed: options.Seed = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    custom_ops: options.CustomOps = None,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Measure MODEL on this machine's CPU, in turns with another model: latency, CPU time and, where counted, joules.

    Every ratio has a 95 % interval; what lies within it is called no detectable change. Joules come from the CPU's own
    energy counters (RAPL), where this machine has them and lets them be read.
    """
    limits = options.limits(memory_limit, time_limit)
    from joulec import api
    from joulec.report import energy_tables, terminal

    found = api.measure(
        model, against, data, options.shapes(shape), limits=limits, trust_code=trust_code, threads=threads or 1,
        seconds=seconds, seed=seed or 0, custom_ops=custom_ops or (),
    ).to_json()  # fmt: skip
    if json:
        print_json(found)
    else:
        energy_tables.measured(terminal.console(), model, against, found)


def devices(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default=False, help="Show this device's coefficients; a name or a .toml."),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the device profiles that price a model, or show every number of one, with its source.

    A profile of your own is a TOML file in the same form: give its path as --device, or put it into
    ~/.config/joulec/devices to have it found by name. docs/how-to.md shows one.
    """
    from joulec.energy import load_profile, profile_names, user_profiles
    from joulec.report import terminal

    if name is not None:
        found = load_profile(name)
        if json:
            print_json(found.to_json())
        else:
            terminal.device_help(terminal.console(), f"{found.name} ({found.kind})", found.description, found.rows())
        return
    every = [load_profile(one) for one in [*profile_names(), *user_profiles()]]
    if json:
        print_json([one.to_json() for one in every])
        return
    rows = [
        (one.name, f"{one.power['static'].value:g} W", f"{one.power['cap'].value:g} W", one.description)
        for one in every
    ]
    terminal.device_table(terminal.console(), rows)


def calibrate_device(
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=1, help="Intra-op threads to calibrate for.")
    ] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Half of the microbenchmarks, each for a shorter while.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", show_default=False, help="Default: the CPU's model.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE.toml", show_default=False, help="Default: your folder of profiles."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Time small models on this CPU and write a device profile that fits them.

    Later commands on this machine price with it, unless --device says otherwise. Leave the machine alone meanwhile.
    """
    from joulec.energy import calibrate_cpu, write_profile
    from joulec.report import terminal
    from joulec.report.progress import Watcher

    with Watcher(quiet=json) as watch:
        found = calibrate_cpu(threads, quick, name, watch)
    place = write_profile(found.profile, out)
    if json:
        print_json({"profile": str(place), **found.to_json()})
    else:
        terminal.calibrated(terminal.console(), place, found)
