# The commands of the project. State lives under CHURN_HOME; deleting it is a clean start.
PYTHON ?= python3
# Where bytecode is not kept, as in many containers, every process compiles its libraries anew.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
# Puts CHURN_HOME and DAGSTER_HOME into the environment of what it runs, as `churn` reads them.
WITH_SETTINGS := $(BIN)/python -m churn_assets.operations.with_settings
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

.PHONY: setup mlflow demo test check dev serve bench lock

setup: .venv/installed  ## only the installation, exact versions from requirements.lock

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0]'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --no-compile --require-hashes -r requirements.lock
	$(PIP) --no-build-isolation --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(PIP) --no-compile --require-hashes -r requirements-dev.lock
	touch $@

test: .venv/installed-dev  ## install what tests need and run them all
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: .venv/installed-dev  ## lint, format, layers, types, definitions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(WITH_SETTINGS) $(BIN)/dg check defs

demo: .venv/installed  ## a synthetic shop through the whole graph
	$(BIN)/churn backfill --last 12
	$(BIN)/churn report

bench: .venv/installed .venv-feast/installed  ## the benchmarks
	$(BIN)/python -m benchmarks.history
	$(BIN)/python -m benchmarks.one_more_slice
	$(BIN)/python -m benchmarks.reviews
	$(BIN)/python -m benchmarks.online
	$(BIN)/python -m benchmarks.torture
	$(BIN)/python -m benchmarks.torture --store hashes --seconds 20
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.serving_faults

.venv-feast/installed:  # Feast needs pandas < 3, so it is compared from an environment of its own
	$(PYTHON) -m venv .venv-feast
	.venv-feast/bin/python -m pip install --quiet 'feast[redis]==0.67.0'
	touch $@

mlflow: .venv/installed  ## the runs of the models on http://localhost:5000
	$(WITH_SETTINGS) sh -c \
		'exec $(BIN)/mlflow server --backend-store-uri "sqlite:///$$CHURN_HOME/mlflow.db" --port 5000'

dev: .venv/installed-dev  ## the web UI and daemon on http://localhost:3000
	$(WITH_SETTINGS) $(BIN)/dg dev --port 3000

serve: .venv/installed  ## features and predictions over HTTP, on http://localhost:8000
	$(BIN)/churn serve

# Needs uv. nvidia-nccl (469 MB) serves xgboost on several GPUs only, so it is left out.
LOCK := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-emit-package nvidia-nccl-cu12 --no-header
lock:  ## compile the lock files anew
	$(LOCK) --output-file requirements.lock
	$(LOCK) --group dev --constraint requirements.lock --output-file requirements-dev.lock
