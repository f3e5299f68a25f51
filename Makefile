# Everything a contributor needs; `make help` explains. Only Python 3.11, make, gcc and a package index are assumed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
GPU := build/gpu
PYTEST_FLAGS ?= -n 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test quick gpu-env test-gpu-evidence kernel-table lint types bench bench-int8 bench-simplify bench-energy bench-pruning bench-finetune bench-evidence docs clean

help: ## show what each target does
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Two stamps, so that the demo does not wait for what only developers need.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "installing joulec with TensorFlow into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[cpu,tensorflow]' scikit-learn
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing joulec with everything its tests need into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[cpu,tensorflow,onnxsim,dev]'
	@touch $@

$(DEMO)/trained: examples/digits/train.py | $(VENV)/.demo
	$(BIN)/python examples/digits/train.py $(DEMO)
	@touch $@

demo: $(VENV)/.demo $(DEMO)/trained ## train two digit classifiers, optimize both, and show what changed (4 minutes)
	$(BIN)/joulec optimize $(DEMO)/small.keras -o $(DEMO)/small --data $(DEMO)/small_calibration.npz \
	    --metric examples/digits/metric.py:accuracy_small --max-drop 1% --sparsity 0.3
	$(BIN)/joulec optimize $(DEMO)/wide.keras -o $(DEMO)/wide --data $(DEMO)/wide_calibration.npz \
	    --metric examples/digits/metric.py:accuracy_wide --max-drop 1% --sparsity 0.3
	@$(BIN)/python examples/digits/summary.py $(DEMO)/small $(DEMO)/wide

test: $(VENV)/.dev ## run every test
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

quick: $(VENV)/.dev ## run the tests that need no TensorFlow
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow'

# onnxruntime-gpu cannot stand beside onnxruntime, so what answers for CUDA and TensorRT has an environment of its own.
$(GPU)/.ready: joulec/backends/evidence/standins.py joulec/backends/evidence/standins.c joulec/backends/evidence/standins_cudnn.c
	@echo "installing onnxruntime-gpu and TensorRT-RTX into $(GPU) (half a GiB; no GPU is needed)"
	$(PYTHON) -m venv $(GPU)/env
	$(GPU)/env/bin/python -m pip install --quiet --disable-pip-version-check onnxruntime-gpu==1.31.1 'tritonclient[grpc]==2.73.0' \
	    tensorrt-rtx-cu13==1.7.1.116 onnx nvidia-cuda-runtime nvidia-cuda-crt
	$(GPU)/env/bin/python joulec/backends/evidence/standins.py $(GPU)/standins
	@touch $@

gpu-env: $(GPU)/.ready ## build the environment that answers for CUDA and TensorRT without a GPU

test-gpu-evidence: $(VENV)/.dev $(GPU)/.ready ## run the tests that ask onnxruntime-gpu and TensorRT-RTX (no GPU needed)
	JOULEC_GPU_ENV=$(GPU) $(BIN)/python -m pytest $(PYTEST_FLAGS) -m gpu_evidence

kernel-table: $(GPU)/.ready ## write joulec/ir/kernels.tsv from what the providers report
	$(GPU)/env/bin/python benchmarks/gpu/kernel_table.py

lint: $(VENV)/.dev ## check style
	$(BIN)/ruff check .

types: $(VENV)/.dev ## check types
	$(BIN)/mypy

bench: $(VENV)/.dev demo ## compare INT8 on the demo's models with ONNX Runtime's own quantizers
	$(BIN)/python benchmarks/int8 --cases digits --tools joulec optimized onnxruntime-static onnxruntime-dynamic --no-write

bench-int8: $(VENV)/.dev demo ## compare INT8 with every peer on real models, and write docs/int8-benchmark.md (an hour)
	$(PIP) pillow
	$(BIN)/python benchmarks/int8 --install

bench-simplify: $(VENV)/.dev ## compare simplify with the peers on real models, and write docs/simplify.md (30 minutes)
	$(PIP) onnxsim onnxslim onnxoptimizer onnxscript
	$(BIN)/python benchmarks/simplify.py

bench-energy: $(VENV)/.dev ## score the energy model on networks that it was not fitted to, and write docs/energy-benchmark.md
	$(BIN)/python benchmarks/energy

bench-pruning: $(VENV)/.dev ## prune trained networks and architectures, and write docs/pruning-benchmark.md (an hour)
	$(BIN)/python benchmarks/pruning

bench-finetune: $(VENV)/.dev ## prune networks, train them on, and write docs/finetune-benchmark.md (half an hour)
	$(BIN)/python benchmarks/finetune

bench-evidence: $(VENV)/.dev $(GPU)/.ready demo ## climb the ladder of evidence with real models, and write docs/evidence.md (an hour)
	$(PIP) pillow
	JOULEC_GPU_ENV=$(GPU) $(BIN)/python benchmarks/evidence --install

docs: $(VENV)/.dev ## write docs/passes.md from the passes themselves
	$(BIN)/python docs/generate.py

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
