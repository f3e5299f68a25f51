"""The models whose artefacts climb the ladder of evidence, with data and the sizes that their artefacts have."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "int8"))
from cases import Case, _untrained, cases
from simplify_models import Missing

WORK = Path(__file__).resolve().parents[2] / "build" / "evidence"
TRANSFORMER = Path(__file__).with_name("transformer.py")


@dataclass(frozen=True)
class Model:
    """One model: a case of `benchmarks/int8`, and the sizes that its artefacts have."""

    case: Case
    shape: str | None = None

    @property
    def name(self) -> str:
        """How the table calls it."""
        return self.case.name


def models() -> list[Model]:
    """Every model, in the order of the table."""
    known = {case.name: case for case in cases()}
    return [
        Model(known["digits wide"], "batch=8"),
        Model(known["keras ResNet50"], "batch=1"),
        Model(known["keras MobileNetV2"], "batch=1"),
        Model(Case("keras EfficientNetV2B0", _untrained("keras EfficientNetV2B0")), "batch=1"),
        Model(Case("keras transformer", _transformer), "batch=8"),
        Model(known["Magika"], "bytes=1x2048"),
        Model(known["OCR orientation"], "x=1x3x48x192"),
    ]


def _transformer(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TRANSFORMER), str(place)], capture_output=True, text=True, check=False, timeout=1800
    )
    if done.returncode != 0:
        raise Missing((done.stderr.strip().splitlines() or ["TensorFlow fails"])[-1][:100])


def rows(folder: Path, batch: int, feeds: int = 4) -> list[dict[str, np.ndarray]]:
    """The first rows of a case's calibration data, as feeds of `batch` rows."""
    with np.load(folder / "calibration.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return [{name: one[k * batch : (k + 1) * batch] for name, one in arrays.items()} for k in range(feeds)]
