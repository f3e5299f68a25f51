"""NVIDIA ModelOpt's ONNX quantization at its defaults (INT8, float16 beside it), calibrated on the CPU.

modelopt_worker.py FLOAT.onnx CALIBRATION.npz OUT.onnx, run in ModelOpt's own environment.
"""

from __future__ import annotations

import sys

import numpy as np
from modelopt.onnx.quantization import quantize

if __name__ == "__main__":
    model, data, out = sys.argv[1:]
    with np.load(data, allow_pickle=False) as file:
        arrays = {name: file[name].reshape(-1, *file[name].shape[2:]) for name in file.files}  # one input of all rows
    quantize(model, calibration_data=arrays, calibration_eps=["cpu"], output_path=out)
