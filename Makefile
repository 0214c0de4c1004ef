# Each command sets up what it needs, in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Tests in as many processes as there are cores, each with one thread
SIDE_BY_SIDE := -n logical --maxprocesses 4
# PyTorch without the libraries of GPUs: a tenth of the download on Linux. From this index
# alone, because a CPU build of torch does not work with another build of torchvision.
CPU_BUILDS := https://download.pytorch.org/whl/cpu

.PHONY: run test test-all notebooks bench book demo lab clean

run: .venv/ready
	$(BIN)/python -m going_modular.publishing.notebooks run

# Tests and stored outputs use the drawn images, our backbone, one size and one precision on
# every machine.
test notebooks: export VIT_WEIGHTS =
test notebooks: export FOODVISION_PRECISION = float32
test: export FOODVISION_SOURCE = synthetic
test: export FOODVISION_SIZE = smoke
test: export OMP_NUM_THREADS = 1
test: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --dist worksteal tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --dist loadfile --nbval-lax notebooks

# Also the slow suites: notebooks alone in new environments, the package as a wheel, the
# book and the demo in a browser, all solutions, other Pythons, types and coverage, and
# everything with the oldest PyTorch
test-all: .venv/book .venv/demo .venv/peers
	$(BIN)/python -m going_modular.publishing.all_suites

notebooks: export FOODVISION_SOURCE = synthetic
notebooks: export FOODVISION_SIZE = cpu
notebooks: .venv/ready
	$(BIN)/python -m going_modular.publishing.notebooks store
	$(BIN)/python -m going_modular.publishing.notebooks solve

# Speed and memory beside timm, transformers and torchvision: docs/results/bench.md. It takes
# about an hour on two cores, which should have nothing else to do
bench: export FOODVISION_PRECISION =
bench: .venv/peers
	$(BIN)/python -m benchmarks --write

# A web site of the notebooks with their stored outputs: build/book/index.html
book: .venv/book
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -c docs . build/book
	@echo "The book: build/book/index.html"

# A page to try the model on your own photos, on this machine only
demo: .venv/demo
	$(BIN)/python -m going_modular.publishing.demo

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf build .venv

.venv/ready: pyproject.toml requirements.txt requirements/dev.txt
	@echo "Setting up .venv (a few minutes, once): PyTorch, Jupyter and the test tools"
	$(PYTHON) -m venv .venv
	@[ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null || \
		PIP_CONFIG_FILE=/dev/null $(BIN)/python -m pip --isolated install --quiet --retries 0 \
			--timeout 10 --index-url $(CPU_BUILDS) torch torchvision 2>/dev/null || \
		echo "PyTorch's builds for CPUs cannot be had from $(CPU_BUILDS): taking the usual ones"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch .venv/ready

.venv/book .venv/demo .venv/peers: .venv/%: requirements/%.txt .venv/ready
	$(BIN)/python -m pip install --quiet --requirement $<
	@touch $@
