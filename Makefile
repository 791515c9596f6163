# A thin front over the installed command `pocketrec`; `make` alone prints this help.
#
#   make all                       the quick suite: environment, data, runs, dashboards, page
#   make run SUITE=quick METHOD=robe RATIO=100,1000 JOBS=2

SUITE ?= quick
PYTHON ?= python3
VENV ?= .venv
ifneq ($(A)$(B),)
COMPARED = $(A) $(B)
endif

BIN = $(VENV)/bin
READY = $(VENV)/.ready
FILTERS = $(if $(METHOD),--method $(METHOD)) $(if $(DATASET),--dataset $(DATASET)) \
          $(if $(RATIO),--ratio $(RATIO)) $(if $(SEED),--seed $(SEED))
PARALLEL = -n $(or $(JOBS),2) --dist loadscope
EXECUTION = $(if $(JOBS),--jobs $(JOBS)) $(if $(EXECUTOR),--executor $(EXECUTOR))

.DEFAULT_GOAL = help
.PHONY: help all plan run retry measure status dashboards index compare bundle lab bench prepare cluster-help test test-all lint clean setup

help: ## show this help
	@echo "make TARGET [SUITE=quick] [METHOD=] [DATASET=] [RATIO=] [SEED=] [JOBS=] [EXECUTOR=]"
	@echo "filters take one value or several, separated by commas"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15

all: $(READY) ## set up, run the suite, build dashboards and page, print where it is
	@$(BIN)/pocketrec all $(SUITE) $(FILTERS) $(EXECUTION)

plan: $(READY) ## what a suite would run, in which state it is, and how long it takes
	@$(BIN)/pocketrec plan $(SUITE) $(FILTERS) $(if $(JOBS),--jobs $(JOBS))

run: $(READY) ## run what is not done yet
	@$(BIN)/pocketrec run $(SUITE) $(FILTERS) $(EXECUTION)

retry: $(READY) ## run again what failed, and nothing else
	@$(BIN)/pocketrec retry $(SUITE) $(FILTERS) $(EXECUTION)

measure: $(READY) ## time and weigh what a paper's suite asks for beside its runs, alone on the machine
	@$(BIN)/pocketrec measure $(SUITE)

status: $(READY) ## how many runs are done, failed, infeasible, to do
	@$(BIN)/pocketrec status $(SUITE) $(FILTERS)

dashboards: $(READY) ## execute the dashboard notebooks over the results
	@$(BIN)/pocketrec dashboards $(SUITE)

index: $(READY) ## build results/SUITE/index.html from the records
	@$(BIN)/pocketrec index $(SUITE)

bundle: $(READY) ## write results/SUITE.zip to send: page, notebooks, records, environment
	@$(BIN)/pocketrec bundle $(SUITE)

compare: $(READY) ## compare two folders or bundles of results: A=results/quick B=colleague.zip
	@$(BIN)/pocketrec compare $(COMPARED)

lab: $(READY) ## open JupyterLab on the notebooks (localhost only, with its own token)
	@$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

bench: $(READY) ## time every family of lookups and its rivals: BENCH="--full --rivals ../rivals"
	@$(BIN)/pocketrec bench $(BENCH)

prepare: $(READY) ## prepare one dataset: DATASET=bookcrossing
	@$(BIN)/pocketrec prepare $(DATASET)

cluster-help: ## the few commands that start a cluster for EXECUTOR=ray, or use Slurm with EXECUTOR=submitit
	@cat docs/cluster.md

test: $(READY) ## the newcomer's tests, under ten minutes
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: $(READY) ## every test
	@$(BIN)/python -m pytest $(PARALLEL)

lint: $(READY) ## style and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean: ## remove the environment and caches; data and results stay
	rm -rf $(VENV) .venv.lock build lib/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(READY) ## make the environment and stop there

# one builder at a time: a second make waits, sees the stamp, and goes on
LOCK = $(if $(shell command -v flock),flock .venv.lock)
$(READY): pyproject.toml constraints.txt
	@$(LOCK) $(MAKE) --no-print-directory --file $(firstword $(MAKEFILE_LIST)) build-environment

.PHONY: build-environment
build-environment:
	@if [ ! $(READY) -nt pyproject.toml ] || [ ! $(READY) -nt constraints.txt ]; then \
	  echo "setting up $(VENV) (once, a minute or two)"; \
	  { [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { \
	    echo "error: '$(PYTHON) -m venv' failed; on Debian: apt-get install python3-venv" >&2; exit 1; }; } && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab,dev,gpu,cluster]" && \
	  touch $(READY); \
	fi
