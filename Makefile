# Complete on a machine with Python 3.11 and make: every target sets up what it needs.
PYTHON ?= python3.11
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
OUTPUT ?= $(CURDIR)/bundle/output
EPOCHS ?= 14
PINNED := import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")

.PHONY: setup train test lint benchmark

setup: $(VENV)/.done

# torch first and alone, so that no other requirement chooses its version
$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(PINNED)' > $(VENV)/pinned.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' $(VENV)/pinned.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/pinned.txt
	touch $@

# Trains from scratch on the phantom, then compares with the untrained network on other phantoms.
train: setup
	cd bundle && $(BIN)/python -m monai.bundle run training --config_file configs/train.json \
		--epochs $(EPOCHS) --output_dir $(OUTPUT)
	cd bundle && $(BIN)/python -m monai.bundle run evaluating \
		--config_file "['configs/train.json','configs/evaluate.json']" \
		--ckpt_path $(OUTPUT)/model.pt --output_dir $(OUTPUT)/trained
	cd bundle && $(BIN)/python -m monai.bundle run evaluating \
		--config_file "['configs/train.json','configs/evaluate.json']" \
		--load_weights False --output_dir $(OUTPUT)/untrained
	cd bundle && $(BIN)/python -m scripts.report $(OUTPUT)/untrained/cases.csv \
		$(OUTPUT)/trained/cases.csv --picture $(OUTPUT)/errors.png

benchmark: setup
	cd bundle && $(BIN)/python -m scripts.benchmark

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest
