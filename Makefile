# Every target sets the project up first; `make setup` alone is harmless to repeat.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# files of tests run side by side, the dear ones first; each test uses one thread
WORKERS ?= 2
MODELS ?= models
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
OLDEST_TRITON := 3.6.0
LOCKED := requirements/torch.txt requirements/cpu.txt

LOCK := --override requirements/overrides.txt --python-version 3.11 --universal --generate-hashes --no-header \
  --no-annotate --quiet --no-emit-package torch --no-emit-package torchvision --no-emit-package torchaudio \
  --no-emit-package torchcodec

.PHONY: setup lint format test test-all test-gpu kernels-check kernels-check-ci bench-cpu demo load judge lock

setup: .venv/.ready

.venv/.ready: $(LOCKED) requirements/install.sh requirements/vllm-metadata/setup.py setup.py palu_vllm_autoload.pth
	PYTHON=$(PYTHON) bash requirements/install.sh .venv
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.structure

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu" $(SIDE_BY_SIDE)

test-all: setup
	$(BIN)/python -m pytest -m "not gpu" $(SIDE_BY_SIDE)

# on a machine with an NVIDIA GPU, with a PYTHON that has torch for it; the other tests interpret the kernels
test-gpu:
	TRITON_INTERPRET=0 $(PYTHON) -m pytest --noconftest -m gpu tests/gpu

# all with the Triton that is installed, the newest that is supported; with the oldest, in a folder of its own, what
# known_failures.py knows of. CHECK="--arch sm_90 --recommended" takes minutes in place of hours
kernels-check: setup .triton/$(OLDEST_TRITON)/.ready
	$(BIN)/python -m benchmarks.kernels.check --fresh $(CHECK)
	PYTHONPATH=.triton/$(OLDEST_TRITON) $(BIN)/python -m benchmarks.kernels.check --fresh \
	  $(or $(CHECK),--arch sm_90 --recommended)

.triton/%/.ready:
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(@D) triton==$*
	touch $@

kernels-check-ci: setup
	$(BIN)/python -m benchmarks.kernels.check --fresh --arch sm_90 --recommended

# attention of one layer over a codec's slots beside vLLM's own; the last line is JSON
bench-cpu: setup
	$(BIN)/python -m benchmarks.latency.cpu_codec

demo: setup
	$(BIN)/python -m benchmarks.demo

# five minutes of 32 streaming users; its report is benchmarks/results/load_soak.html
load: setup
	$(BIN)/python -m benchmarks.load.soak

# caches on a real model; MODELS is what `python -m benchmarks.real_models MODELS` wrote
judge: setup
	$(BIN)/python -m benchmarks.judge --folder $(MODELS)

lock: setup
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile requirements/cpu.in --output-file requirements/cpu.txt $(LOCK)
	$(BIN)/uv pip compile requirements/serve.in --output-file requirements/serve.txt --constraint requirements/cpu.txt $(LOCK)
