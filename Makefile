# `make train` and `make test` need nothing but Python 3.11 or newer with its venv module.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DOCS_VENV := .venv-docs
DOCS_INSTALLED := $(DOCS_VENV)/.installed
CORES := $(shell nproc 2>/dev/null || echo auto)

.PHONY: train test test-random test-slow fuzz soak demo pretrained bench bench-check bench-gpu lint format tables docs docs-serve install clean

train: $(INSTALLED)
	$(RUN) src/train.py env=hopper experiment=laptop

# a process of one thread for each core
test: $(INSTALLED)
	@echo "the tests take about 15 minutes on two idle cores, 30 on busy ones (docs/testing.md)"
	$(RUN) -m pytest -n $(CORES) --dist worksteal

# the same in an order of its own, which its first lines tell: make test-random SEED=1234 repeats one
test-random: $(INSTALLED)
	$(RUN) -m pytest -n $(CORES) --dist worksteal -p randomly $(if $(SEED),--randomly-seed=$(SEED))

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m slow

# 1,200 bad values in the keys of all commands, a second or two each; FUZZ_SEED and FUZZ_COUNT choose others
fuzz: $(INSTALLED)
	$(RUN) -m pytest -m slow tests/attacks/test_fuzz.py

# what long runs need, and how late decisions are; by hand: make soak MINUTES=30
soak: $(INSTALLED)
	for kind in loop agent deadline; do $(RUN) tests/helpers/soak.py $$kind $(or $(MINUTES),1) || exit 1; done

# a planned episode of a model that comes with the package, as a video
demo: $(INSTALLED)
	$(RUN) src/evaluate.py checkpoint=pretrained/hopper-medium evaluation.episodes=1 logger=csv
	@echo "the video is episode.mp4 in the run folder above"

# makes a model of the package again: make pretrained NAME=hopper-medium; of a training that is there: CHECKPOINT=last.ckpt
pretrained: $(INSTALLED)
	$(RUN) -m trajectory.commands.pretrained $(NAME) $(CHECKPOINT)

bench: $(INSTALLED)
	$(RUN) src/benchmark.py

# half a minute: fails when a ratio of speeds has fallen by more than a third of the committed one
bench-check: $(INSTALLED)
	$(RUN) src/benchmark.py benchmark.suites=[ratios] ratios.committed=results/ratios.json

# one run of eight minutes for a GPU; it needs torch, Lightning and Hydra, and takes this Python's where there is no .venv
bench-gpu:
	$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) src/benchmark.py benchmark.suites=[gpu] benchmark.minutes=8

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ty check --error-on-warning src tests docs/result_tables.py

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# the tables of the README and docs/ anew, from results/
tables: $(INSTALLED)
	$(RUN) docs/result_tables.py

# the site in site/; a warning, a page that is missing from the navigation or a broken link is an error
# (not with --quiet: MkDocs then counts no warnings)
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --clean
	@echo "the site is in site/; make docs-serve shows it"

docs-serve: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs serve

# the API reference is read from the sources, so that none of the package's dependencies is needed
$(DOCS_INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(DOCS_VENV) || { echo "the venv module is needed: apt install python3-venv"; exit 1; }
	@$(DOCS_VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(DOCS_VENV)/requirements.txt
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt -r $(DOCS_VENV)/requirements.txt
	@touch $@

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is needed: apt install python3-venv"; exit 1; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) site
