# The whole developer interface; `make` alone says what there is.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
# One process a core and one more, as some wait; every file of tests in one of them, the long ones before the last.
CORES := len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
APART = -n $(shell $(PYTHON) -c 'import os; print(1 + ($(CORES)))') --dist loadfile --no-loadscope-reorder

# Networks for tests/graph/library_networks.py; without their dependencies, which would bring another build of torch.
LIBRARIES := timm torchvision

.PHONY: help install test test-only test-all test-all-only gpu check format demo audit

help:
	@echo "make demo      install, then the embedded run: from nothing to runs/demo/report.html"
	@echo "make test      install, then lint, types and tests; what CI runs"
	@echo "make test-all  the slow tests too"
	@echo "make gpu       the tests that need a CUDA device, then benchmarks/gpu/QUEUE.md: OUT=FOLDER DATA=FOLDER MINUTES=9"
	@echo "make audit     known faults of the pinned packages, by pip-audit, which asks PyPI: it needs the internet"
	@echo "make format    lay out the code and fix what lint can fix"

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "htas needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps $(LIBRARIES)
	@touch $(READY)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Types are checked by one process: the tests begin meanwhile.
test: $(READY)
	@$(MAKE) --no-print-directory -j2 check test-only

test-all: $(READY)
	@$(MAKE) --no-print-directory -j2 check test-all-only

test-only: $(READY)
	$(BIN)/pytest -q $(APART) -m "not slow and not gpu"

test-all-only: $(READY)
	$(BIN)/pytest -q $(APART) -m "not gpu"

OUT ?= runs/gpu
MINUTES ?= 9
gpu: $(READY)
	$(BIN)/python benchmarks/gpu/pieces.py --out $(OUT) --minutes $(MINUTES) $(if $(DATA),--data $(DATA))

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# In an environment of its own, whose packages are not those that are looked at.
audit:
	test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && \
		.venv/audit/bin/python -m pip install --quiet pip-audit; }
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

demo: $(READY)
	$(BIN)/htas demo
