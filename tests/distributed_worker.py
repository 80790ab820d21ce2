"""Training as test_distributed.py compares it, and what torchrun runs for it in two processes."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from ignite.engine import Events
from monai.bundle import create_workflow

from conftest import BUNDLE, SMALL_CHAIN, SMALL_ROTATION
from scripts.evaluation.metrics import training_loss

EPOCHS = 3
GLOBAL_BATCH = 4
# a network that steps in no time, and nothing random but the order of the cases
PLAIN = {
    **SMALL_CHAIN,
    **SMALL_ROTATION,
    "network_def#max_rotation_sd_deg": 180.0,
    "cubes_per_volume": 2,
    "train#brains": [],
    "train#cube_transforms": [],
    "train#cubes#angle_deg": 0.0,
    "train#cubes#turned_prob": 0.0,
    "train#cubes#elsewhere_prob": 0.0,
    "train#cubes#spread": 0.0,
    "train#cubes#shift": 0.0,
    "train#cubes#scale": 1.0,
    "train#cubes#off_prob": 0.0,
    "train#cubes#blank_prob": 0.0,
    "train#cubes#stretch": 1.0,
    "train#cubes#mirror_prob": 0.0,
    "train#cubes#bend_prob": 0.0,
    "train#cubes#motion_prob": 0.0,
    "train#cubes#corrected_prob": 0.0,
    "network_def#maps_dropout": 0.0,
    "network_def#min_brain_ml": 0.0,
    "network_def#min_density": 0.0,
    "patch_voxels": 32,
    "num_workers": 0,
    "epochs": EPOCHS,
    "val_interval": EPOCHS,
    "train#random_transforms#0": {
        "_target_": "scripts.data.augmentation.RandSimilarityd",
        "spatial_size": "@patch_voxels",
        "rotate_prob": 0.0,
        "mirror_prob": 0.0,
        "scale": [1.0, 1.0],
        "shift_mm": 0.0,
        "spacing_mm": "@spacing_mm",
    },
    "train#random_transforms#2#prob": 0.0,
    "train#random_transforms#3#prob": 0.0,
    "train#random_transforms#4#prob": 0.0,
    "train#random_transforms#5#prob": 0.0,
    "train#random_transforms#6#prob": 0.0,
    "train#random_transforms#7#prob": 0.0,
    "train#random_transforms#8#prob": 0.0,
    "train#random_transforms#9#shift": 0.0,
    "train#random_transforms#9#scale": 0.0,
}


def workflow(names, dataset_dir, output_dir, **overrides):
    """A workflow that is initialised (which joins the processes, if there are several)."""
    return create_workflow(
        config_file=[str(BUNDLE / "configs" / f"{name}.json") for name in names],
        workflow_type="train",
        bundle_root=str(BUNDLE),
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        **PLAIN | overrides,
    )


def train(names, dataset_dir, output_dir, **overrides):
    """Loss of every step, metrics of the validation; checkpoints of all epochs are kept."""
    run = workflow(names, dataset_dir, output_dir, **overrides)
    losses, metrics = [], {}
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: losses.append(training_loss(e.state.output))
    )
    run.evaluator.add_event_handler(Events.COMPLETED, lambda e: metrics.update(e.state.metrics))

    def keep(engine):
        if engine.state.rank == 0:
            path = Path(output_dir) / "checkpoint.pt"
            shutil.copy(path, path.with_name(f"checkpoint_{engine.state.epoch}.pt"))

    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, keep)
    run.run()
    return losses, metrics


def weights(run):
    state = run.parser.get_parsed_content("network").state_dict()
    return torch.cat([value.flatten() for value in state.values()])


def gather(value):
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def same_step_of_all(dataset_dir, output_dir):
    """Weights of both processes after an epoch in which one of them has seen a NaN."""
    run = workflow(["train", "multi_gpu_train"], dataset_dir, output_dir, batch_size=2, epochs=1)
    before = weights(run)
    loss = run.trainer.loss_function

    def spoiled(prediction, target):
        factor = (
            math.nan
            if torch.distributed.get_rank() == 1 and run.trainer.state.iteration == 1
            else 1.0
        )
        return factor * loss(prediction, target)

    run.trainer.loss_function = spoiled
    run.run()
    after = weights(run)
    moved = not torch.equal(before, after) and bool(after.isfinite().all())
    return {"moved": moved, "equal": gather(after.tolist())[0] == after.tolist()}


def augmented(dataset_dir, output_dir, num_workers):
    """A number for every patch that both processes make of copies of one case in one epoch."""
    run = workflow(["train", "multi_gpu_train"], dataset_dir, output_dir, batch_size=2)
    case = run.parser.get_parsed_content("train#dataset#data")[0]
    run = workflow(
        ["train", "multi_gpu_train"],
        dataset_dir,
        output_dir,
        **{
            "batch_size": 2,
            "num_workers": num_workers,
            "train#dataset#data": [case] * 8,
            "train#random_transforms#8#prob": 1.0,
        },
    )
    loader = run.parser.get_parsed_content("train#dataloader")
    sums = [image.double().std().item() for batch in loader for image in batch["image"]]
    return [value for part in gather(sums) for value in part]


def thread_names():
    return [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]


def main(dataset_dir, folder, single):
    several = ["train", "multi_gpu_train"]
    found = {}
    found["curve"] = train(several, dataset_dir, folder / "both", batch_size=GLOBAL_BATCH // 2)
    resumed = folder / "resumed"
    resumed.mkdir(exist_ok=True)
    shutil.copy(single / "checkpoint_2.pt", resumed / "checkpoint.pt")
    torch.distributed.barrier()
    found["resumed"] = train(
        several, dataset_dir, resumed, batch_size=GLOBAL_BATCH // 2, resume=True
    )
    workflow(
        [*several, "evaluate"],
        dataset_dir,
        folder / "evaluated",
        section="validation",
        ckpt_path=str(single / "model.pt"),
    ).run()
    found["spoiled"] = same_step_of_all(dataset_dir, folder / "spoiled")
    found["augmented"] = [augmented(dataset_dir, folder / "a", n) for n in (0, 0, 1, 1)]
    rank = torch.distributed.get_rank()
    (folder / f"rank_{rank}.json").write_text(json.dumps(found))
    run = workflow(several, dataset_dir, folder)
    run.finalize()
    assert not torch.distributed.is_initialized()
    # one that still runs at the end aborts the process every now and then
    assert not [name for name in thread_names() if "gloo" in name]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
