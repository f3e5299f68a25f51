"""Programs that look at an artefact with other people's compilers, each run by an interpreter of its own.

They import nothing of joulec's: their interpreter has onnxruntime-gpu or TensorRT-RTX, which cannot be installed
beside ONNX Runtime for the CPU. `make gpu-env` builds it; `joulec.backends.outside` runs them.
"""
