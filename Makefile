# make run    install into .venv, then run recipes/av_digits.yaml end to end
# make test   the same environment: lint, types, tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    ?= runs/av_digits
# Tests run in so many processes, a file of tests in one of them.
WORKERS ?= 2
# Without a GPU, PyTorch's own index has smaller wheels: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.PHONY: run test lint types bench clean install

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mst-edge needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install
	$(BIN)/mst-edge run recipes/av_digits.yaml --out $(RUN) --resume

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 --package apps  # what a bundle carries runs on older boards

test: lint types
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

bench: install
	$(BIN)/mst-edge compare av_digits

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
