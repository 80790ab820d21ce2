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

.PHONY: fuzz serve benchmark-service setup train weights test lint benchmark ablation package federated-setup federated-data federated test-export test-federated

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
# age, brains of an atlas; the localizer on navigators of small heads and on headless volumes too.
# FETAL_ALIGN is a clone of https://github.com/mu40/fetal-align, ATLAS the folders of the spina bifida
# atlas (Fidon et al. 2021). A run that was stopped goes on at the target that was not finished.
# MIXED_PRECISION=False is faster on processors without bfloat16.
MIXED_PRECISION ?= True
WEIGHTS := $(OUTPUT)/weights
TRAINING := $(BIN)/python -m monai.bundle run training --mixed_precision $(MIXED_PRECISION)
MIXTURE := 'configs/train.json','configs/mixture.json'
BOTH := --dataset_dir $(WEIGHTS)/stacks --phantom_dir $(WEIGHTS)/phantom
ALL := --dataset_dirs "['$(WEIGHTS)/stacks','$(WEIGHTS)/phantom','$(WEIGHTS)/varied','$(WEIGHTS)/brains','$(WEIGHTS)/young','$(WEIGHTS)/young_epi','$(WEIGHTS)/atlas']" \
	--shares "[0.28,0.13,0.16,0.22,0.06,0.06,0.09]"
FOR_LOCALIZER := --dataset_dirs "['$(WEIGHTS)/stacks','$(WEIGHTS)/phantom','$(WEIGHTS)/nav','$(WEIGHTS)/young_epi','$(WEIGHTS)/young_nav','$(WEIGHTS)/young_varied','$(WEIGHTS)/young','$(WEIGHTS)/varied','$(WEIGHTS)/brains','$(WEIGHTS)/atlas','$(WEIGHTS)/headless']" \
	--shares "[0.22,0.07,0.08,0.06,0.18,0.05,0.05,0.12,0.08,0.05,0.04]"
# of the atlas the ages that are trained on; the odd ones test
BRAINS := --brains $(abspath $(ATLAS)) --brain_weeks 22,24,26,28,30,32,34
PHANTOM := $(BIN)/python -m scripts.phantom --test 0
VARIANT := $(BIN)/python -m scripts.variants
weights: $(WEIGHTS)/model.pt

$(WEIGHTS)/.data: $(VENV)/.done
	test -d "$(FETAL_ALIGN)" -a -d "$(ATLAS)" || { echo "usage: make weights FETAL_ALIGN=clone ATLAS=folder"; exit 2; }
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/phantom --training 400 --validation 24
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/varied --seed 21 --training 1400 --validation 12 \
		--sequence varied --coarsen 2
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/brains --seed 24 --training 800 --validation 0 \
		--sequence varied --coarsen 2 $(BRAINS)
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/young --seed 22 --training 160 --validation 0 \
		--sequence varied --coarsen 2 --ga_weeks 18,23 $(BRAINS)
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/young_epi --seed 23 --training 240 --validation 0 \
		--ga_weeks 18,23
	cd bundle && $(PHANTOM) --dataset_dir $(WEIGHTS)/young_varied --seed 64 --training 80 --validation 0 \
		--sequence varied --coarsen 2 --ga_weeks 18,23
	cd bundle && $(BIN)/python -m scripts.datasets fetal_align \
		--source $(abspath $(FETAL_ALIGN)) --dataset_dir $(WEIGHTS)/stacks
	cd bundle && $(BIN)/python -m scripts.datasets brain_atlas --source $(abspath $(ATLAS)) \
		--dataset_dir $(WEIGHTS)/atlas --test_weeks 21,23,25,27,29,31,33
	cd bundle && $(VARIANT) navigator --section training --dataset_dir $(WEIGHTS)/phantom --output_dir $(WEIGHTS)/nav
	cd bundle && $(VARIANT) headless --section training --dataset_dir $(WEIGHTS)/phantom --output_dir $(WEIGHTS)/headless
	cd bundle && $(VARIANT) navigator --section training --dataset_dir $(WEIGHTS)/young_epi --output_dir $(WEIGHTS)/young_nav --repeats 2
	touch $@

$(WEIGHTS)/base/model.pt: $(WEIGHTS)/.data
	cd bundle && $(TRAINING) --config_file configs/train.json --dataset_dir $(WEIGHTS)/phantom \
		--epochs 12 --val_interval 12 --rotation_lr 0.02 --output_dir $(@D)

$(WEIGHTS)/both/model.pt: $(WEIGHTS)/base/model.pt
	cd bundle && $(TRAINING) --config_file "[$(MIXTURE)]" $(BOTH) --samples_per_epoch 400 \
		--epochs 94 --val_interval 94 --rotation_lr 0.012 --init_path $< --output_dir $(@D)

$(WEIGHTS)/localizer/model.pt: $(WEIGHTS)/both/model.pt
	cd bundle && $(TRAINING) --config_file "[$(MIXTURE),'configs/localizer.json']" $(FOR_LOCALIZER) \
		--samples_per_epoch 400 --epochs 60 --val_interval 60 --localizer_lr 0.002 \
		--init_path $< --output_dir $(@D)

$(WEIGHTS)/landmarks/model.pt: $(WEIGHTS)/localizer/model.pt
	cd bundle && $(TRAINING) --config_file "[$(MIXTURE),'configs/landmarks.json']" $(ALL) \
		--samples_per_epoch 200 --epochs 150 --val_interval 150 --init_path $< --output_dir $(@D)

$(WEIGHTS)/rotation/model.pt: $(WEIGHTS)/landmarks/model.pt
	cd bundle && $(TRAINING) --config_file "[$(MIXTURE),'configs/rotation.json']" $(ALL) \
		--samples_per_epoch 400 --epochs 72 --val_interval 72 --rotation_lr 0.015 \
		--init_path $< --output_dir $(@D)

$(WEIGHTS)/model.pt: $(WEIGHTS)/rotation/model.pt
	cd bundle && $(TRAINING) \
		--config_file "[$(MIXTURE),'configs/rotation.json','configs/rotation_crops.json']" $(ALL) \
		--samples_per_epoch 800 --crop_passes 32 --crops_per_epoch 400 --epochs 120 \
		--val_interval 120 --rotation_lr 0.015 --init_path $< --output_dir $(WEIGHTS)/crops
	cp $(WEIGHTS)/crops/model.pt $@

# Five sites that differ as hospitals do fine-tune, without sharing volumes, weights that know EPI
# alone: those of release 0.8.0, out of the repository's history. Ends with a table against each site
# alone and against all data in one place. The full setting, some hours (docs/federated.md):
# make federated FEDERATED_TRAINING=24 FEDERATED_VALIDATION=12 FEDERATED_TEST=16 FEDERATED_ROUNDS=4 FEDERATED_EPOCHS=4
FEDERATED ?= $(OUTPUT)/federated
FEDERATED_TRAINING ?= 10
FEDERATED_VALIDATION ?= 8
FEDERATED_TEST ?= 8
FEDERATED_ROUNDS ?= 2
FEDERATED_EPOCHS ?= 3
EPI_WEIGHTS := d62601b
FEDERATED_PHANTOM := $(BIN)/python -m scripts.phantom --validation $(FEDERATED_VALIDATION) --test $(FEDERATED_TEST) \
	--headless_share 0
FEDERATED_JOB := OMP_NUM_THREADS=1 $(BIN)/python -m scripts.federated.job
COMMA := ,
EMPTY :=
FEDERATED_SITES := --sites $(subst $(EMPTY) $(EMPTY),$(COMMA),$(foreach site,epi haste young brains small,$(site)=$(FEDERATED)/data/$(site)))
FEDERATED_PLAN := $(FEDERATED_SITES) --key_metric rotation_mean_deg --override rotation_lr=0.003 \
	--override localizer_lr=0.001 --override landmarks_lr=0.001 \
	--override mixed_precision=$(shell echo $(MIXED_PRECISION) | tr TF tf)
FEDERATED_START := --init_path $(FEDERATED)/start.pt
# of training by itself: as many epochs, in half as many rounds, which only rate it less often
FEDERATED_ALONE := --rounds 2 --local_epochs $$(($(FEDERATED_ROUNDS) * $(FEDERATED_EPOCHS) / 2))
federated-setup: $(VENV)/.federated

$(FEDERATED)/start.pt:
	mkdir -p $(@D)
	git show $(EPI_WEIGHTS):bundle/models/model.pt > $@ || { rm -f $@; \
		echo "needs the repository's history: git fetch --unshallow"; exit 2; }

federated-data: setup
	cd bundle && $(FEDERATED_PHANTOM) --dataset_dir $(FEDERATED)/data/epi \
		--training $(FEDERATED_TRAINING) --seed 2 --ga_weeks 24,38 --contrast epi
	cd bundle && $(FEDERATED_PHANTOM) --dataset_dir $(FEDERATED)/data/haste \
		--training $(FEDERATED_TRAINING) --seed 3 --sequence haste --coarsen 2
	cd bundle && $(FEDERATED_PHANTOM) --dataset_dir $(FEDERATED)/data/young \
		--training $(FEDERATED_TRAINING) --seed 4 --ga_weeks 18,23 --voxel_mm 6,6,6
	cd bundle && $(FEDERATED_PHANTOM) --dataset_dir $(FEDERATED)/data/brains \
		--training $(FEDERATED_TRAINING) --seed 5 --contrast t2 --voxel_mm 2,2,2 --brain_only
	cd bundle && $(FEDERATED_PHANTOM) --dataset_dir $(FEDERATED)/data/small \
		--training 3 --seed 6 --sequence bssfp --coarsen 2

federated: federated-setup federated-data $(FEDERATED)/start.pt
	cd bundle && $(FEDERATED_JOB) simulate $(FEDERATED_PLAN) $(FEDERATED_START) \
		--rounds $(FEDERATED_ROUNDS) --local_epochs $(FEDERATED_EPOCHS) --output_dir $(FEDERATED)
	cd bundle || exit; $(FEDERATED_JOB) alone --pooled $(FEDERATED_PLAN) $(FEDERATED_START) \
		$(FEDERATED_ALONE) --output_dir $(FEDERATED)/pooled & pooled=$$!; \
		$(FEDERATED_JOB) alone $(FEDERATED_PLAN) $(FEDERATED_START) $(FEDERATED_ALONE) \
		--output_dir $(FEDERATED)/alone; alone=$$?; wait $$pooled && exit $$alone
	cd bundle && $(FEDERATED_JOB) rate $(FEDERATED_SITES) --output_dir $(FEDERATED)/ratings \
		--models before=$(FEDERATED)/start.pt,alone=$(FEDERATED)/alone,federated=$(FEDERATED)/model.pt,pooled=$(FEDERATED)/pooled/model.pt
	cd bundle && $(BIN)/python -m scripts.federated.report $(FEDERATED)/ratings \
		--rounds $(FEDERATED) --alone $(FEDERATED)/alone --picture $(FEDERATED)/rounds.png

# A scan that follows the head, simulated: PHANTOMS fetuses, three planes, MOTION (docs/closed_loop.md);
# with DATASET=folder its labelled volumes in place of phantoms. Half a minute a stack; it can be
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

# Some eighty processes are started, each of which would compile all modules again if told to keep none.
test: lint federated-setup
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov

# The shipped chain and the second pass by torch.export, and ONNX: some minutes.
test-export: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/test_export.py

# Drawn headers and files through reading, more of them than `make test` draws.
fuzz: setup
	FUZZ_EXAMPLES=10000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_fuzz_reading.py

# Server and clients as processes with mutual TLS, one killed in a round: some minutes.
test-federated: federated-setup
	$(BIN)/python -m pytest -m slow tests/test_federated.py tests/test_federated_poc.py
