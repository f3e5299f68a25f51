"""`joulec place`: a model on a host with a CPU and a GPU, its nodes where the fewest joules are predicted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulec.api import model_file
from joulec.backends import artefact, backend
from joulec.backends.base import MODEL_FILE, SESSION_FILE, SessionSettings, write_json
from joulec.backends.split import ASSIGNMENT, Placements, Splitter, annotated, named
from joulec.energy import EnergyModel, profile_for
from joulec.errors import BudgetError
from joulec.ir.lower import lower

if TYPE_CHECKING:
    from joulec.build import Shapes
    from joulec.ir.sandbox import Limits


@dataclass(frozen=True)
class Placed:
    """What `place` found: the three placements, the devices they were predicted for, and the artefact, if written."""

    placements: Placements
    host: str
    device: str
    directory: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON; the names of nodes are those of the split only."""
        found = {name: asdict(one) for name, one in self.placements.items()}
        return {"placements": found, "host": self.host, "device": self.device, "directory": self.directory}


def place(
    model: Any, out: str | Path | None = None, *, host: str | None = None, device: str | None = None,
    seconds: float | None = None, shape: Shapes | None = None, limits: Limits | None = None, trust_code: bool = False,
) -> Placed:  # fmt: skip
    """Predict where the nodes of a model should run, on a host with a CPU and a GPU, and write it as an artefact.

    Args:
        model: anything `optimize` takes, or an artefact's directory (best one for cuda).
        out: the artefact directory; None writes nothing.
        host, device: device profiles of the CPU and of the GPU; by default as for the targets cpu and cuda.
        seconds: latency that must not be exceeded, as predicted.
        shape: sizes of symbolic dimensions.

    Raises:
        InputError: no such model, profile or place.
        BudgetError: no placement was found within the latency.
    """
    module = named(lower(model_file(model), trust_code=trust_code, limits=limits).module)
    cpu = EnergyModel(profile_for(host, backend("cpu").target.device), "cpu")
    gpu = EnergyModel(profile_for(device, backend("cuda").target.device), "cuda")
    splitter = Splitter(module, cpu, gpu, shape)
    best = splitter.least(seconds)
    if best is None:
        least = min(splitter.everywhere(False).seconds, splitter.everywhere(True).seconds)
        raise BudgetError(f"no placement within {seconds:g} s is predicted; on one device it takes {least:.2g} s")
    found = {"cpu": splitter.everywhere(False), "gpu": splitter.everywhere(True), "split": best}
    if out is None:
        return Placed(found, cpu.profile.name, gpu.profile.name)
    with artefact.replacing(Path(out)) as folder:
        annotated(module, best).save(folder / MODEL_FILE)
        wanted = backend("cuda").settings_for(module, 1, shape or {})
        settings = SessionSettings(wanted.provider, wanted.provider_options, 1, dict([ASSIGNMENT]))
        write_json(folder / SESSION_FILE, settings.to_json())
    return Placed(found, cpu.profile.name, gpu.profile.name, str(out))
