# Complete on a machine with Python 3.11 and make: every target sets up what it needs.
PYTHON ?= python3.11
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
OUTPUT ?= $(CURDIR)/bundle/output
EPOCHS ?= 10
PINNED := import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*p["dependencies"], *(x for extra in ("export", "formats", "dicom", "transforms", "scan", "dev") \
	for x in p["optional-dependencies"][extra]), sep="\n")
PINNED_FEDERATED := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*p["optional-dependencies"]["federated"], sep="\n")

.PHONY: fuzz serve benchmark-service setup train weights test lint benchmark ablation package federated-setup federated test-export test-federated

setup: $(VENV)/.done

# torch first and alone, so that no other requirement chooses its version
$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(PINNED)' > $(VENV)/pinned.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' $(VENV)/pinned.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/pinned.txt
	touch $@

# NVFlare (about 110 MB), for the targets that need it
$(VENV)/.federated: $(VENV)/.done
	$(BIN)/python -c '$(PINNED_FEDERATED)' > $(VENV)/pinned_federated.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/pinned_federated.txt
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

# The recipe of the shipped weights: all parts on the phantom, then on public fetal EPI and the
# phantom together, then each part alone on all that there is: EPI, phantoms of every sequence and
# age, brains of an atlas. FETAL_ALIGN is a clone of https://github.com/mu40/fetal-align, ATLAS the
# folders of the spina bifida atlas (Fidon et al. 2021). A run that was stopped goes on at the target
# that was not finished. MIXED_PRECISION=False is faster on processors without bfloat16.
MIXED_PRECISION ?= True
WEIGHTS := $(OUTPUT)/weights
TRAINING := $(BIN)/python -m monai.bundle run training --mixed_precision $(MIXED_PRECISION)
MIXTURE := 'configs/train.json','configs/mixture.json'
BOTH := --dataset_dir $(WEIGHTS)/stacks --phantom_dir $(WEIGHTS)/phantom
ALL := --dataset_dirs "['$(WEIGHTS)/stacks','$(WEIGHTS)/phantom','$(WEIGHTS)/varied','$(WEIGHTS)/young','$(WEIGHTS)/young_epi','$(WEIGHTS)/atlas']" \
	--shares "[0.3,0.18,0.26,0.07,0.07,0.12]"
PHANTOM := $(BIN)/python -m scripts.phantom --test 0
weights: $(WEIGHTS)/model.pt

$(WEIGHTS)/.data: $(VENV)/.done
	test -d "$(FETAL_ALIGN)" -a -d "$(ATLAS)" || { echo "usage: make weights FETAL_ALIGN=clone ATLAS=folder"; exit 2; }
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/phantom --training 400 --validation 24
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/varied --seed 21 --training 420 --validation 12 \
		--sequence varied --coarsen 2
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/young --seed 22 --training 120 --validation 0 \
		--sequence varied --coarsen 2 --ga_weeks 18,23
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/young_epi --seed 23 --training 120 --validation 0 \
		--ga_weeks 18,23
	cd bundle && $(BIN)/python -m scripts.datasets fetal_align \
		--source $(abspath $(FETAL_ALIGN)) --dataset_dir $(WEIGHTS)/stacks
	cd bundle && $(BIN)/python -m scripts.datasets brain_atlas --source $(abspath $(ATLAS)) \
		--dataset_dir $(WEIGHTS)/atlas --test_weeks 21,23,25,27,29,31,33
	touch $@

$(WEIGHTS)/base/model.pt: $(WEIGHTS)/.data
	cd bundle && $(TRAINING) --config_file configs/train.json --dataset_dir $(WEIGHTS)/phantom \
		--epochs 12 --val_interval 12 --rotation_lr 0.02 --output_dir $(@D)

$(WEIGHTS)/both/model.pt: $(WEIGHTS)/base/model.pt
	cd bundle && $(TRAINING) --config_file "[$(MIXTURE)]" $(BOTH) --samples_per_epoch 400 \
		--epochs 94 --val_interval 94 --rotation_lr 0.012 --init_path $< --output_dir $(@D)

$(WEIGHTS)/localizer/model.pt: $(WEIGHTS)/both/model.pt
	cd bundle && $(TRAINING) --config_file "[$(MIXTURE),'configs/localizer.json']" $(ALL) \
		--samples_per_epoch 400 --epochs 60 --val_interval 60 --localizer_lr 0.002 \
		--init_path $< --output_dir $(@D)

$(WEIGHTS)/landmarks/model.pt: $(WEIGHTS)/localizer/model.pt
	cd bundle && $(TRAINING) --config_file "[$(MIXTURE),'configs/landmarks.json']" $(ALL) \
		--samples_per_epoch 200 --epochs 150 --val_interval 150 --init_path $< --output_dir $(@D)

$(WEIGHTS)/model.pt: $(WEIGHTS)/landmarks/model.pt
	cd bundle && $(TRAINING) --config_file "[$(MIXTURE),'configs/rotation.json']" $(ALL) \
		--samples_per_epoch 400 --epochs 60 --val_interval 60 --rotation_lr 0.015 \
		--init_path $< --output_dir $(WEIGHTS)/rotation
	cp $(WEIGHTS)/rotation/model.pt $@

# Three sites whose volumes differ fine-tune the shipped weights without sharing them; ends with a
# table against each site training by itself, and a picture of the rounds.
FEDERATED := $(OUTPUT)/federated
FEDERATED_PHANTOM := $(BIN)/python -m scripts.phantom --training 12 --validation 6 --test 0
FEDERATED_JOB := OMP_NUM_THREADS=1 $(BIN)/python -m scripts.federated.job
FEDERATED_PLAN := --rounds 3 --local_epochs 2 \
	--override rotation_lr=0.005 --override localizer_lr=0.0005 \
	--sites young=$(FEDERATED)/data/young,epi=$(FEDERATED)/data/epi,t2=$(FEDERATED)/data/t2
federated-setup: $(VENV)/.federated

federated: federated-setup
	cd bundle && $(FEDERATED_PHANTOM) --dataset_dir $(FEDERATED)/data/young --seed 1 \
		--ga_weeks 20,24 --voxel_mm 6,6,6
	cd bundle && $(FEDERATED_PHANTOM) --dataset_dir $(FEDERATED)/data/epi --seed 2 \
		--ga_weeks 24,38 --contrast epi
	cd bundle && $(FEDERATED_PHANTOM) --dataset_dir $(FEDERATED)/data/t2 --seed 3 \
		--ga_weeks 24,38 --contrast t2
	cd bundle && $(FEDERATED_JOB) simulate $(FEDERATED_PLAN) --output_dir $(FEDERATED)
	cd bundle && $(FEDERATED_JOB) alone $(FEDERATED_PLAN) --output_dir $(FEDERATED)/alone
	cd bundle && $(BIN)/python -m scripts.federated.report $(FEDERATED) \
		--alone $(FEDERATED)/alone --picture $(FEDERATED)/rounds.png

# A scan that follows the head, simulated: PHANTOMS fetuses, three planes, MOTION (docs/closed_loop.md);
# with DATASET=folder its labelled volumes in place of phantoms. Some minutes a stack; it can be
# stopped, and goes on.
PHANTOMS ?= 4
MOTION ?= typical
CLOSED_LOOP ?= $(OUTPUT)/closed_loop_$(notdir $(basename $(MOTION)))
closed-loop: setup
	cd bundle && $(BIN)/python -m monai.bundle run --config_file configs/closed_loop.json \
		--motion $(if $(wildcard $(MOTION)),$(abspath $(MOTION)),$(MOTION)) \
		--phantoms $(PHANTOMS) --plane "['axial','coronal','sagittal']" \
		$(if $(filter command line environment,$(origin DATASET)),--dataset_dir $(abspath $(DATASET))) \
		--output_dir $(CLOSED_LOOP)

benchmark: setup
	cd bundle && $(BIN)/python -m scripts.benchmark

# A service for a scanner on this machine: PORT, and further options in SERVICE (docs/scanner.md)
PORT ?= 9002
serve: setup
	cd bundle && $(BIN)/python -m scripts.service --port $(PORT) $(SERVICE)

# Latency, memory and endurance of the service; then the same with two busy cores. Some minutes.
benchmark-service: setup
	cd bundle && $(BIN)/python -m scripts.benchmark_service
	cd bundle && $(BIN)/python -m scripts.benchmark_service --navigators 200 --kills 5 --busy 2

# What each part of the chain contributes, on the phantom's test section or on DATASET, with PLAIN_CNN,
# a model.pt trained with configs/rotation.json and configs/plain_cnn.json, in E3CNN's place too.
DATASET ?= $(CURDIR)/bundle/data/phantom
ablation: setup
	test "$(DATASET)" != "$(CURDIR)/bundle/data/phantom" || (cd bundle && $(BIN)/python -m scripts.phantom \
		--dataset_dir $(DATASET))
	cd bundle && $(BIN)/python -m scripts.ablation --dataset_dir $(abspath $(DATASET)) \
		$(if $(PLAIN_CNN),--plain_cnn $(abspath $(PLAIN_CNN)))

# dist/fetal_mri_head_pose_v<version>.zip, from what is committed. Needs git, and nothing installed.
package:
	$(PYTHON) tools/package.py --output_dir dist

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint federated-setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov

# The shipped chain by torch.export, and ONNX with both passes: some minutes.
test-export: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/test_export.py

# Drawn headers and files through reading, more of them than `make test` draws.
fuzz: setup
	FUZZ_EXAMPLES=10000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_fuzz_reading.py

# Server and clients as processes with mutual TLS, one killed in a round: some minutes.
test-federated: federated-setup
	$(BIN)/python -m pytest -m slow tests/test_federated.py tests/test_federated_poc.py
