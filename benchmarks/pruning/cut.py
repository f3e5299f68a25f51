"""torch-pruning on one model, in its own environment: the narrowest network that keeps a point on the validation rows.

    python cut.py torch-pruning FLOAT.onnx CALIBRATION.npz OUT.onnx

The network comes from the same ONNX file by onnx2torch. Channels go by the magnitude of their groups, torch-pruning's
own default, at one ratio everywhere, and widths are multiples of 8, so that narrow layers stay; without training, as
joulec's are. Of the ratios 0.9, 0.8, ... the first that keeps the budget on `validation.npz` beside the data is taken,
so that both spend the same budget judged by the same rows. Prints RESULT and a JSON object.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import torch
import torch_pruning as tp

VISION = types.ModuleType("torchvision")
"""onnx2torch imports torchvision for two operators that no network here has; where that was built for CUDA and torch
was not, it does not load."""
VISION.ops = types.SimpleNamespace(roi_align=None)  # type: ignore[attr-defined]
sys.modules |= {"torchvision": VISION, "torchvision.ops": VISION.ops}

from onnx2torch import convert  # noqa: E402

BUDGET, RATIOS = 0.01, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def accuracy(model: Any, images: Any, labels: Any) -> float:
    """Share of the rows that come out right."""
    with torch.no_grad():
        return float((model(images).argmax(-1).numpy() == labels).mean())


def network(path: Path) -> Any:
    """The network as a torch module; onnx2torch knows ReduceMean up to opset 17."""
    return convert(onnx.version_converter.convert_version(onnx.load(path), 17)).eval()


def weights(model: Any) -> int:
    """How many it has."""
    return sum(one.numel() for one in model.parameters())


def pruned(path: Path, ratio: float, example: Any) -> Any:
    """The network with `ratio` of the channels of each group removed; the layer that makes the scores stays."""
    model = network(path)
    layers = [one for one in model.modules() if isinstance(one, torch.nn.Linear | torch.nn.Conv2d)]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(
        model, example, importance, pruning_ratio=ratio, ignored_layers=layers[-1:], round_to=8
    )  # fmt: skip
    pruner.step()
    return model


def main(path: Path, data: Path, out: Path) -> dict[str, Any]:
    """Prune and export; what it took."""
    with np.load(data.with_name("validation.npz"), allow_pickle=False) as file:
        images, labels = torch.from_numpy(file["image"]), file["y"]
    whole = accuracy(network(path), images, labels)
    for ratio in RATIOS:
        model = pruned(path, ratio, images[:1])
        drop = whole - accuracy(model, images, labels)
        if drop <= BUDGET:
            traced = torch.nn.Sequential(model)  # the exporter takes a module with a graph for a scripted one
            torch.onnx.export(
                traced, (images[:2],), str(out), input_names=["image"], dynamic_axes={"image": {0: "batch"}},
                opset_version=17, dynamo=False,
            )  # fmt: skip
            left = weights(model) / weights(network(path))
            return {"share": ratio, "validation_drop": drop, "weights left": left}
    return {"error": f"even a ratio of {RATIOS[-1]} costs {100 * drop:.1f} points"}


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(*map(Path, sys.argv[2:]))))
