# Every target does its own set-up on a fresh machine: a virtual environment, PyTorch, the build. All that is needed is
# python3 (3.10 or newer), a C++ compiler and make.
PYTHON ?= python3
TORCH  ?= torch==2.13.0          # what to install when the virtual environment has no PyTorch yet
VENV   ?= .venv
TIER   ?= quick
RUN    := $(VENV)/bin/python

.PHONY: demo test bench gpu-check lint clean

demo: $(VENV)/installed          ## trains WGAN-GP on handwritten digits and draws samples into runs/
	$(RUN) -m ganzoo train wgan-gp

test: $(VENV)/installed          ## the whole test suite
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal --benchmark-disable

bench: $(VENV)/installed         ## measures and writes the README's tables; TIER=full: further dtypes, layouts, shapes, compiled code
	mkdir -p out && rm -f out/rows.jsonl
	$(RUN) -m pytest benchmarks --tier $(TIER) --budget 2250 -rs --rows out/rows.jsonl --benchmark-columns=median,iqr,rounds; status=$$?; \
	$(RUN) -m benchmarks.report out/rows.jsonl && exit $$status

gpu-check:                       ## on a machine with a GPU: builds, tests and measures with the python3 that is there
	$(PYTHON) -m benchmarks.gpu_check $(ARGS)

lint: $(VENV)/installed
	$(RUN) -m pip install --quiet ruff
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

$(VENV)/installed: setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.*)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install --quiet $(strip $(TORCH)) numpy
	$(RUN) -m pip install --quiet "setuptools>=77" ninja
	$(RUN) -m pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info gankernels/*.so
