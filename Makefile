# Complete on a machine with Python 3.11 and make: every target sets up what it needs.
PYTHON ?= python3.11
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
OUTPUT ?= $(CURDIR)/bundle/output
EPOCHS ?= 10
PINNED := import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")

.PHONY: setup train weights test lint benchmark

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

# The recipe of the shipped weights: the phantom first, then public fetal EPI and the phantom
# together. FETAL_ALIGN is a clone of https://github.com/mu40/fetal-align.
WEIGHTS := $(OUTPUT)/weights
TRAINING := $(BIN)/python -m monai.bundle run training --mixed_precision True
weights: setup
	test -d "$(FETAL_ALIGN)" || { echo "usage: make weights FETAL_ALIGN=clone"; exit 2; }
	cd bundle && $(BIN)/python -m scripts.phantom --dataset_dir $(WEIGHTS)/phantom \
		--training 400 --validation 24 --test 60
	cd bundle && $(BIN)/python -m scripts.datasets fetal_align \
		--source $(abspath $(FETAL_ALIGN)) --dataset_dir $(WEIGHTS)/stacks
	cd bundle && $(TRAINING) --config_file configs/train.json --dataset_dir $(WEIGHTS)/phantom \
		--epochs 12 --val_interval 12 --rotation_lr 0.02 --output_dir $(WEIGHTS)/base
	cd bundle && $(TRAINING) --config_file "['configs/train.json','configs/mixture.json']" \
		--dataset_dir $(WEIGHTS)/stacks --phantom_dir $(WEIGHTS)/phantom --samples_per_epoch 400 \
		--epochs 42 --val_interval 42 --rotation_lr 0.012 \
		--init_path $(WEIGHTS)/base/model.pt --output_dir $(WEIGHTS)/final

benchmark: setup
	cd bundle && $(BIN)/python -m scripts.benchmark

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest
