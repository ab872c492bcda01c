# Each verb sets itself up: a virtual environment in .venv with the locked, hashed dependencies. Needed beforehand:
# make, and a python3 with venv and pip. `uv` is used instead of pip when it is on the PATH, because it is faster.

PYTHON ?= python3
UV ?= uv
BIN := .venv/bin
STAMP := .venv/.locked
LOCK := requirements.lock.txt
GRAPHS := results/graphs/mlp.svg
# TFDS and TensorFlow have an environment of their own, which only `make data SOURCE=tfds` sets up.
TFDS := .venv-tfds
TFDS_LOCK := requirements-tfds.lock.txt

# Assigned with = and not ?=, so that only make's command line changes them: a variable that happens to be exported
# must not narrow a table.
TABLE = 2
DATASET =
PRESET = $(if $(filter $(BEYOND),$(TABLE)),$(APART),paper)
SEEDS =
TOGETHER =
JOBS =
TRACKER =
LAUNCHER = local
CLUSTER =
MEASURE =
MODEL =
METHOD =
ENGINE =
RAW =
SOURCE =
SUBSET =
ALTERED =
RUNS = results/runs
ARGS =

# A misspelt variable would be silent, and another sweep than the one that was meant.
KNOWN := PYTHON UV TABLE DATASET PRESET SEEDS TOGETHER JOBS TRACKER LAUNCHER CLUSTER MEASURE MODEL METHOD ENGINE RAW SOURCE SUBSET ALTERED RUNS ARGS
UNKNOWN := $(filter-out $(KNOWN) MAKE%,$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
$(if $(UNKNOWN),$(error no verb knows $(UNKNOWN); make's variables here: $(KNOWN)))

# A word for the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
# make's variables as `key=value` arguments, left out where they are empty.
arg = $(if $($(1)),$(call quoted,$(2)=$($(1))))
# TABLE=all is every table; several are named like TABLE=2,3.
comma := ,
tables = $(if $(filter all,$(1)),2$(comma)3$(comma)4,$(1))
# What the paper has no table of has a sweep and a preset of its own.
BEYOND := beyond quantized capped study
APART = $(if $(filter quantized,$(TABLE)),beyond,$(TABLE))
$(if $(filter-out $(TABLE),$(filter $(BEYOND),$(subst $(comma), ,$(TABLE)))),$(error TABLE=$(TABLE): $(BEYOND) stand alone))
SWEEP = $(call quoted,sweep=$(if $(filter $(BEYOND),$(TABLE)),$(TABLE),table$(subst $(comma),$(comma)table,$(call tables,$(TABLE)))))
SHOWN = analysis.beyond results/$(APART) $(if $(filter study,$(TABLE)),--pivot method.target_scale)$(if $(filter quantized,$(TABLE)),--model 'quantized_*')
COPY = $(call arg,SUBSET,dataset.subset) $(call arg,ALTERED,dataset.altered)
SELECTION = $(call arg,DATASET,dataset) $(call arg,PRESET,preset) $(call arg,SEEDS,seeds) \
            $(COPY) $(call arg,TOGETHER,together) $(call arg,JOBS,jobs) $(call arg,MODEL,model) $(call arg,METHOD,method) $(call arg,ENGINE,engine) \
            $(call arg,TRACKER,tracker) $(call arg,CLUSTER,cluster)

# Who does the runs: this machine, or SLURM, to which they are only submitted.
LAUNCHERS := local slurm
REPRODUCE = $(if $(filter $(LAUNCHERS),$(LAUNCHER)),$(if $(filter slurm,$(LAUNCHER)),cluster.submit,reproduce),$(error LAUNCHER=$(LAUNCHER): one of $(LAUNCHERS)))

.DEFAULT_GOAL := help
.PHONY: help demo test lint data reproduce tables figures report wandb-sync check-latex status plan clean setup lock
.DELETE_ON_ERROR:

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## five methods on real 8x8 digits, a table and a figure, in under 3 minutes; no data to download
	@$(BIN)/python -m experiments.reproduce sweep=demo preset=demo seeds=1

test: $(STAMP) ## the tests, which need no cluster and no network; ARGS=--all: every case of those with many
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(STAMP) ## style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

data: DATASET = mnist
data: $(if $(filter tfds,$(SOURCE)),$(TFDS)/.locked,$(STAMP)) ## download a data set once, or import it, checksummed: DATASET=mnist [RAW=<folder with the original files> SOURCE=tfds SUBSET=yes ALTERED=yes]
	@$(if $(filter tfds,$(SOURCE)),$(TFDS)/bin,$(BIN))/python -m experiments.data \
	  $(call arg,DATASET,dataset) $(call arg,RAW,raw) $(call arg,SOURCE,source) $(COPY)

reproduce: $(STAMP) ## run what is missing, then tables, figures and report: TABLE=2,3,4,all or beyond,quantized,capped,study PRESET=paper,quick,smoke [DATASET= MODEL= METHOD= SEEDS= ENGINE= JOBS=2 TOGETHER=yes TRACKER=wandb LAUNCHER=slurm CLUSTER=<profile>]
	@$(BIN)/python -m experiments.$(REPRODUCE) $(SWEEP) $(SELECTION)

tables: $(STAMP) ## print ours beside published, from the records that exist: tables that have some, or [TABLE= DATASET=]; TABLE=beyond,quantized,capped,study: other methods
	@$(BIN)/python -m $(if $(filter $(BEYOND),$(TABLE)),$(SHOWN),analysis.tables \
	  $(if $(filter command,$(origin TABLE)),$(if $(filter-out all,$(TABLE)),--table $(call quoted,$(TABLE))))) \
	  $(if $(filter command,$(origin DATASET)),--dataset $(call quoted,$(DATASET)))

figures: $(STAMP) $(GRAPHS) ## Figures 3-7 from records, benchmarks and traced graphs, in results/figures
	@$(BIN)/python -m analysis.figures

report: $(STAMP) $(GRAPHS) ## did it reproduce? one HTML page, and the verdicts in the terminal
	@$(BIN)/python -m analysis.report

wandb-sync: $(STAMP) ## send finished, cut and failed runs, and their tables and figures, to W&B, each once: [RUNS=results/runs ARGS=--project=pjax]
	@$(BIN)/python -m analysis.wandb_sync $(call quoted,$(RUNS)) $(ARGS)

check-latex: $(STAMP) ## compile the tables' LaTeX; needs a pdflatex
	@$(BIN)/python -m analysis.latex

# Traced once; remove the folder to trace anew.
$(GRAPHS): | $(STAMP)
	@$(BIN)/python -m experiments.graphs

status: $(STAMP) ## grid of cells: done, running, queued, cut, failed, missing [TABLE= PRESET= DATASET= MODEL= METHOD= SEEDS=]
	@$(BIN)/python -m experiments.status $(SWEEP) $(SELECTION)

plan: $(STAMP) ## what a table would take, before anything runs: runs to do, memory and time of each cell [MEASURE=yes: also of new ones]
	@$(BIN)/python -m experiments.plan $(SWEEP) $(SELECTION) $(call arg,MEASURE,measure)

clean: ## remove caches and the virtual environment; never results or data
	rm -rf .venv $(TFDS) .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -not -path './results/*' -not -path './data/*' -prune -exec rm -rf {} +

setup: $(STAMP)

# The stamp is the last thing written: a set-up that fails anywhere leaves none, and the next verb starts it afresh.
$(STAMP): $(LOCK)
$(TFDS)/.locked: $(TFDS_LOCK)
$(STAMP) $(TFDS)/.locked:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: PJAX needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "       Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@[ ! -L $(@D) ] || { \
	  echo "error: $(@D) is a link, and set-up would empty the environment that it leads to." >&2; \
	  echo "       Remove the link, or use that environment as it is: make -o $@ $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "setting up $(@D) from $< (once, about a minute)"
	@set -e; if $(UV) --version >/dev/null 2>&1; then \
	  $(UV) venv --quiet --clear --python "$$(command -v $(PYTHON))" $(@D); \
	  $(UV) pip sync --quiet --require-hashes --python $(@D)/bin/python $<; \
	else \
	  $(PYTHON) -m venv --clear $(@D); \
	  $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<; \
	fi
	@touch $@

# Renew the locks after changing a dependency in pyproject.toml; needs uv. A change of a lock renews its environment by
# itself. What both environments have is the same in both.
COMPILE = $(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate \
  --python-version 3.11 --extra suite pyproject.toml
lock:
	$(COMPILE) --extra dev -o $(LOCK)
	$(COMPILE) --extra tfds -c $(LOCK) -o $(TFDS_LOCK)
	@! grep -n '://' $(LOCK) $(TFDS_LOCK) || { echo "error: a lock names a host" >&2; exit 1; }
