"""Compile model.onnx, beside this file, into an engine for the GPU of this machine, and write the model that holds it.

    python build_engine.py OUT

Run it on the machine that will serve, with onnxruntime-gpu and TensorRT installed: an engine fits one GPU and one
version of TensorRT. OUT gets model_ctx.onnx (an EPContext model, which ONNX Runtime opens like any other), the engine
and the timing cache. Then open OUT/model_ctx.onnx with the TensorRT provider; no engine is built again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

PROVIDER = "TensorrtExecutionProvider"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the compiled model; made where it is not there")
    out = parser.parse_args().out.absolute()
    try:
        import onnxruntime as ort
    except ImportError:
        sys.stderr.write("error: onnxruntime-gpu is not installed here\n")
        return 5
    if PROVIDER not in ort.get_available_providers():
        sys.stderr.write(f"error: {PROVIDER} is not in this onnxruntime ({', '.join(ort.get_available_providers())})\n")
        return 5
    here = Path(__file__).resolve().parent
    settings = json.loads((here / "session.json").read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    session = ort.InferenceSession(
        str(here / "model.onnx"), ort.SessionOptions(), providers=[(PROVIDER, options(settings, out))],
        disabled_optimizers=settings["disabled_optimizers"],
    )  # fmt: skip
    if session.get_providers()[0] != PROVIDER:
        sys.stderr.write("error: ONNX Runtime fell back to another provider; are TensorRT's libraries found?\n")
        return 5
    sys.stdout.write(f"{out / 'model_ctx.onnx'}\n")
    return 0


def options(settings: dict[str, Any], out: Path) -> dict[str, str]:
    """The artefact's own options, and where the engine and what was timed for it go."""
    return {
        **settings["provider_options"], "trt_dump_ep_context_model": "1", "trt_ep_context_embed_mode": "0",
        "trt_ep_context_file_path": str(out / "model_ctx.onnx"), "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(out), "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(out),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
