"""The models whose artefacts climb the ladder of evidence, with data and the sizes that their artefacts have."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "int8"))
from cases import Case, cases
from simplify_models import Missing, sources

__all__ = ["WORK", "Missing", "Model", "models", "rows"]

WORK = Path(__file__).resolve().parents[2] / "build" / "evidence"


@dataclass(frozen=True)
class Model:
    """One model: a case of `benchmarks/int8`, the sizes that its artefacts have, and how many rows those are."""

    case: Case
    shape: str
    batch: int = 1

    @property
    def name(self) -> str:
        """How the table calls it."""
        return self.case.name


def models() -> list[Model]:
    """Every model, in the order of the table."""
    known = {case.name: case for case in cases()}
    efficient = Case("keras EfficientNetV2B0", _untrained("EfficientNetV2B0"))
    return [
        Model(known["digits wide"], "batch=8", 8),
        Model(known["keras transformer"], "batch=8", 8),
        Model(known["Magika"], "bytes=1x2048"),
        Model(known["OCR orientation"], "x=1x3x48x192"),
        Model(known["keras MobileNetV2"], "batch=1"),
        Model(efficient, "batch=1"),
        Model(known["keras ResNet50"], "batch=1"),
    ]


def _untrained(name: str) -> Callable[[Path], None]:
    """A model of keras.applications with seeded weights, as `benchmarks/int8` has others of them."""

    def make(place: Path) -> None:
        made = next(source for source in sources() if source.name == f"keras {name}").make()
        (place / "float.onnx").write_bytes(made.read_bytes())
        rows = np.random.default_rng(0).uniform(-1, 1, (32, 1, 224, 224, 3)).astype(np.float32)
        np.savez(place / "calibration.npz", image=rows)

    return make


def rows(folder: Path, batch: int, feeds: int = 64) -> list[dict[str, np.ndarray]]:
    """The first rows of a case's calibration data (whole inputs of batch 1, stacked) as feeds of `batch` rows: as many
    as the ladder looks at.
    """
    with np.load(folder / "calibration.npz", allow_pickle=False) as file:
        arrays = {name: file[name].reshape(-1, *file[name].shape[2:]) for name in file.files}
    count = min(feeds, min(map(len, arrays.values())) // batch)
    return [{name: one[k * batch : (k + 1) * batch] for name, one in arrays.items()} for k in range(count)]
