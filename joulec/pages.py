"""Pages to look at: what a build did, or what a model costs, as one HTML file or inside a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulec import describe
from joulec.api import Result, energy_model, model_file
from joulec.backends import artefact
from joulec.build import Shapes
from joulec.energy import Estimate
from joulec.errors import InputError
from joulec.ir.layers import layers
from joulec.ir.lower import lower
from joulec.report.data import Report, Roofs
from joulec.report.html import render, render_estimate

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits

HEIGHT = 900
"""Pixels that a page takes in a notebook before it scrolls."""


@dataclass(frozen=True)
class Page:
    """One HTML page; a notebook shows it where it is the value of a cell.

    Attributes:
        html: the whole page; it loads nothing and runs no script.
    """

    html: str = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Raises:
            InputError: it cannot be written there.
        """
        place = Path(path)
        with artefact.replacing_file(place) as staging:
            staging.write_text(self.html, encoding="utf-8")
        return place

    def _repr_html_(self) -> str:
        """Inside a frame of its own, so that neither its style nor the notebook's reaches the other."""
        inside = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{inside}" sandbox style="width:100%;height:{HEIGHT}px;border:0"></iframe>'


def show(
    subject: Any, target: str | None = None, shape: Shapes | None = None, device: str | None = None,
    *, limits: Limits | None = None, trust_code: bool = False,
) -> Page:  # fmt: skip
    """The page of a build, or of a model that is priced and not changed.

    Args:
        subject: what `optimize` returned (its first target), a report, an artefact's directory, or any model.
        target, shape, device, limits, trust_code: for a model, see `estimate`.

    Raises:
        InputError: a directory that is no intact artefact, or a model that cannot be read.
    """
    if isinstance(subject, Result):
        return Page(render(next(iter(subject.reports.values()))))
    if isinstance(subject, Report):
        return Page(render(subject))
    if model_file(subject) is not subject:
        return Page(render(report_of(Path(subject))))
    return price(subject, target, shape, device, limits=limits, trust_code=trust_code).page()


def report_of(directory: Path) -> Report:
    """The report that an artefact's manifest holds.

    Raises:
        InputError: no artefact, or a manifest that joulec did not write.
    """
    manifest = artefact.read_json(directory / artefact.MANIFEST_FILE)
    try:
        return Report.from_json(manifest["report"])
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{directory / artefact.MANIFEST_FILE}: not a manifest of this version of joulec's") from error


@dataclass(frozen=True)
class Priced:
    """A model that was priced, and what a picture of it needs beside the joules.

    Attributes:
        name: the model's.
        estimate: its joules.
        layers: node -> path of the layer that it belongs to, where that is not told by its name.
        roofs: of the device.
    """

    name: str
    estimate: Estimate
    layers: Mapping[str, str]
    roofs: Roofs

    def page(self) -> Page:
        """The page that shows it."""
        return Page(render_estimate(self.name, self.estimate.to_json(), self.layers, self.roofs))

    def to_json(self) -> dict[str, Any]:
        """`Estimate.to_json()`, with each node's layer and the device's roofs."""
        found = self.estimate.to_json()
        nodes = [{**node, "layer": self.layers.get(node["name"], node["name"])} for node in found["nodes"]]
        return {**found, "nodes": nodes, "roofs": self.roofs.to_json()}


def price(
    model: Any, target: str | None = None, shape: Shapes | None = None, device: str | None = None,
    *, limits: Limits | None = None, trust_code: bool = False,
) -> Priced:  # fmt: skip
    """`estimate`, with what a picture needs."""
    priced = energy_model(model, target, device)
    module = lower(model_file(model), trust_code=trust_code, limits=limits).module
    found = priced.told(module, shape or {})
    name = (Path(model).name or str(model)) if isinstance(model, str | Path) else type(model).__name__
    return Priced(name, found, layers(module, module), describe.roofs(priced.profile, found))
