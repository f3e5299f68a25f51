"""Measure artefacts on the GPU of this machine against the float32 original there: time, joules, numbers.

    python benchmarks/gpu FOLDER [FOLDER ...] [--seconds 4] [-o benchmarks/results/gpu.json]

Run it with onnxruntime-gpu (and TensorRT for its artefacts) and nvidia-ml-py. Each FOLDER holds what
`python benchmarks/evidence` leaves: float.onnx, calibration.npz and artefacts/{cuda,tensorrt}. Inputs and outputs are
bound to the device once (IOBinding), so that copies over the bus are not timed. Original and artefact run in turns,
A B A B; ratios come with a 95 % interval over blocks; joules are the board's, by NVML's counter over whole blocks. What
the device computes is compared with the original on the CPU. A CUDA artefact is also tried as a CUDA graph.
`--provider CPUExecutionProvider` tries the command itself on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from joulec.backends.artefact import settings, verified
from joulec.energy.meters import counting, find_counters
from joulec.passes._outputs import distance
from joulec.payoff import ratio_of

LOADS, BLOCKS = 3, 5
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders of benchmarks/evidence")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long to time each pair")
    parser.add_argument("--provider", default=CUDA, help="where the original runs")
    parser.add_argument("-o", "--out", type=Path, help="write the results as JSON")
    given = parser.parse_args()
    if given.provider not in ort.get_available_providers():
        sys.stderr.write(f"error: {given.provider} is not in this onnxruntime: {ort.get_available_providers()}\n")
        sys.exit(5)
    models = {folder.name: measured(folder, given.provider, given.seconds) for folder in given.folders}
    found = {"conditions": conditions(), "models": models}
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def conditions() -> dict[str, Any]:
    """What the numbers hold for."""
    query = "name,driver_version,clocks.max.sm,power.limit,persistence_mode"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        boards = done.stdout.strip().splitlines()
    except OSError:
        boards = []
    return {
        "boards": boards, "query": query, "onnxruntime": ort.__version__, "joulec": version("joulec"),
        "python": platform.python_version(), "obstacles": [str(one) for one in find_counters()[1]],
    }  # fmt: skip


def measured(folder: Path, provider: str, seconds: float) -> dict[str, Any]:
    """Every artefact of a model that this machine can open."""
    results: dict[str, Any] = {}
    original = Bound(folder / "float.onnx", provider, {}, folder)
    wanted = {"cuda": {}, "tensorrt": {}, "cuda as a graph": {"enable_cuda_graph": "1"}}
    for name, extra in wanted.items():
        place = verified(folder / "artefacts" / name.split()[0])
        session = settings(place)
        target = session.provider if provider == CUDA else provider
        options = {**session.provider_options, **extra} if provider == CUDA else {}
        try:
            one = Bound(place / "model.onnx", target, options, folder, session.disabled_optimizers)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises many types; the reason is the result
            results[name] = {"error": str(error)[:300]}
            continue
        results[name] = {**compared(original, one, seconds), "off by": one.off_by(folder)}
    return results


class Bound:
    """A session whose inputs and outputs lie on its device."""

    def __init__(
        self, model: Path, provider: str, options: dict[str, str], folder: Path, disabled: tuple[str, ...] = ()
    ) -> None:
        self.session = ort.InferenceSession(
            str(model), providers=[(provider, options)] if options else [provider], disabled_optimizers=list(disabled)
        )
        if self.session.get_providers()[0] != provider:
            raise RuntimeError(f"asked for {provider}, got {self.session.get_providers()[0]}")
        self.device = "cpu" if provider == CPU else "cuda"
        self.binding = self.session.io_binding()
        for name, array in feed_of(self.session, folder).items():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name, self.device)
        for _ in range(3):  # engines are built, algorithms chosen, and graphs captured in the first runs
            self.run()

    def run(self) -> None:
        """One inference, finished."""
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def off_by(self, folder: Path) -> float:
        """How far the outputs are from the original's on the CPU, as norms."""
        plain = ort.InferenceSession(str(folder / "float.onnx"), providers=[CPU])
        names = [output.name for output in plain.get_outputs()]
        expected = plain.run(names, feed_of(self.session, folder))
        self.run()
        actual = self.binding.copy_outputs_to_cpu()
        return distance(*({n: [a] for n, a in zip(names, one, strict=True)} for one in (expected, actual)))


def feed_of(session: Any, folder: Path) -> dict[str, np.ndarray]:
    """The first rows of the calibration data, as many as the artefact's batch (the original's is open)."""
    import onnx

    fixed = onnx.load(folder / "artefacts" / "cuda" / "model.onnx", load_external_data=False).graph.input
    batch = {one.name: one.type.tensor_type.shape.dim[0].dim_value or 1 for one in fixed}
    with np.load(folder / "calibration.npz", allow_pickle=False) as file:
        rows = {one.name: file[one.name].reshape(-1, *file[one.name].shape[2:]) for one in session.get_inputs()}
    return {name: np.ascontiguousarray(array[: batch[name]]) for name, array in rows.items()}


def compared(original: Bound, artefact: Bound, seconds: float) -> dict[str, Any]:
    """Time in turns, then joules block by block."""
    one = timed(original, 5)
    rounds = max(10, int(seconds / (LOADS * BLOCKS) / (one + timed(artefact, 5))))
    pairs = [[timed(which, rounds) for which in (original, artefact)] for _ in range(LOADS * BLOCKS)]
    blocks = np.array(pairs).reshape(LOADS, BLOCKS, 2)
    ratio, low, high = ratio_of(blocks[..., 0] / blocks[..., 1])
    times = np.median(blocks.reshape(-1, 2), axis=0) * 1e3
    found = {"times faster": [ratio, low, high], "milliseconds": times.tolist(), "rounds": rounds * LOADS * BLOCKS}
    spent = [joules(which, seconds) for which in (original, artefact)]
    return {**found, "joules": spent}


def timed(one: Bound, rounds: int) -> float:
    """Mean seconds of an inference."""
    start = time.perf_counter()
    for _ in range(rounds):
        one.run()
    return (time.perf_counter() - start) / rounds


def joules(one: Bound, seconds: float) -> float | None:
    """Joules of an inference by the boards' counters; None where there are none, or where they cannot be trusted."""
    counters = [counter for counter in find_counters()[0] if counter.scope == "GPU board"]
    count = 0
    with counting(counters) as counted:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            one.run()
            count += 1
    total = counted.result.joules
    return None if total is None else total / count


if __name__ == "__main__":
    main()
