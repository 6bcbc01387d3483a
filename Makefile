PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready

.PHONY: demo test test-slow check format docs bench smoke clean

demo: $(READY)
	$(BIN)/quincunx demo --out demo-output

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

smoke: $(READY)
	$(BIN)/python -m pytest tests/test_smoke.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS_READY)
	$(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python benchmarks/density.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python -m benchmarks.slices
	$(BIN)/python benchmarks/sgmcmc.py
	$(BIN)/python benchmarks/bregman.py
	$(BIN)/python -m benchmarks.distributed
	$(BIN)/python benchmarks/diffusion.py
	$(BIN)/python benchmarks/amortize.py
	$(BIN)/python benchmarks/refine.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,data]'
	touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site demo-output .pytest_cache .ruff_cache
