# make install | demo | test | test-slow | test-postgres | chaos | fuzz | schema | hostile | up | bench.  TORCH chooses the wheel: the CPU build where pip finds one, else what the registry has.
VENV := .venv
BIN := $(VENV)/bin
TORCH ?=
unexport PYTHONDONTWRITEBYTECODE  # the services of the tests start hundreds of processes, each of which would compile our modules anew

.PHONY: install demo test test-slow test-postgres chaos fuzz schema hostile up bench

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(if $(TORCH),$(BIN)/python -m pip install -q $(TORCH),$(BIN)/python -m pip install -q torch==2.13.0+cpu 2>/dev/null || $(BIN)/python -m pip install -q torch==2.13.0)
	$(BIN)/python -m pip install -q -e .[test]
	touch $@

demo: install
	$(BIN)/python -m demo

# Whole services want the machine to themselves, two of them at a time; everything else waits more than it computes.
test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --ignore tests/service
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/service

test-slow: install
	$(BIN)/python -m pytest -n 3 --dist loadfile -m slow

test-postgres: export MODELPRESS_TEST_DATABASE = postgresql
test-postgres: test

chaos: install
	$(BIN)/python -m pytest -m chaos tests/service

# FUZZ_SECONDS for each target (600), TARGETS of them (all).
fuzz: install
	$(BIN)/python -m pip install -q -e .[fuzz]
	$(BIN)/python -m fuzz $(TARGETS)

# What the OpenAPI document says, held against a real server by schemathesis.
schema: install
	$(BIN)/python -m pip install -q -e .[schema]
	$(BIN)/python -m pytest -m slow tests/app/test_openapi.py

hostile: install
	$(BIN)/python -m benchmarks.hostile

up: install
	$(BIN)/modelpress up $(ARGS)

bench: install
	$(BIN)/python -m benchmarks.lossless
	-DISABLE_CUDA=1 $(BIN)/python -m pip install -q -e .[bench]
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.outliers
	$(BIN)/python -m benchmarks.gptq
	-$(BIN)/python -m benchmarks.auto
	$(BIN)/python -m benchmarks.deep_compression
	$(BIN)/python -m benchmarks.estimates
	$(BIN)/python -m benchmarks.child_memory
	$(BIN)/python -m benchmarks.http_memory
	$(BIN)/python -m benchmarks.whole_job
	$(BIN)/python -m benchmarks.claims
	$(BIN)/python -m benchmarks.upload
	$(BIN)/python -m benchmarks.encryption
