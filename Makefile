# `make run` and `make test` do all of their own set-up, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test notebooks lab clean

run: .venv/ready
	$(BIN)/python -m going_modular.notebooks run

# Tests and stored outputs use the drawn images, our backbone and one size, whatever the
# machine.
test notebooks: export VIT_WEIGHTS =
test: export FOODVISION_SOURCE = synthetic
test: export FOODVISION_SIZE = smoke
test: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest tests
	$(BIN)/python -m pytest --nbval-lax notebooks

notebooks: export FOODVISION_SOURCE = synthetic
notebooks: export FOODVISION_SIZE = cpu
notebooks: .venv/ready
	$(BIN)/python -m going_modular.notebooks store

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf build .venv

.venv/ready: pyproject.toml requirements.txt requirements/dev.txt
	@echo "Setting up .venv (a few minutes, once): PyTorch, Jupyter and the test tools"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch .venv/ready
