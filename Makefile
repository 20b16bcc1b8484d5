# make demo        train the VAE on embedded digits and draw what it learned
# make test        lint, types and tests, but the slow ones
# make test-slow   those
# PYTHON=python3.12 chooses the interpreter (3.11, 3.12 or 3.13), VENV= the environment's folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet
RUN ?= runs/demo
PYTEST_ARGS ?=
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.installed
	$(BIN)/ppl train vae --data mnist5k --binarize dynamic --model.likelihood bernoulli \
		--model.hidden_dims [500,500] --epochs 100 --kl_warmup 5 --lr_schedule cosine \
		--out $(RUN) --overwrite
	@echo
	@echo "Pictures and numbers are in $(RUN); open $(RUN)/report.html"

test: lint
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.made
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
