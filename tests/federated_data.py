"""Small data sets, weights and settings that the tests of the federation share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

from conftest import BUNDLE, SMALL_CHAIN, SMALL_ROTATION, labelled_case, save_nifti

# a network that steps in well under a second; every other value is the shipped one
SMALL = {
    **SMALL_CHAIN,
    **SMALL_ROTATION,
    "network_def#max_rotation_sd_deg": 180.0,
    # so that an untrained localizer finds a head, and rotations can be compared
    "network_def#min_brain_ml": 0.0,
    "network_def#min_density": 0.0,
    "patch_voxels": 32,
    "batch_size": 2,
}
OTHER_NETWORK = {"network_def#localizer_channels": [4, 4, 4, 4, 8, 4]}


def write_site(folder: Path, training: int, validation: int = 1, seed: int = 0) -> Path:
    """A data set of a noisy head, listed as often as asked; its own noise for every seed.

    What is validated on is a file and a subject of its own: a data set that mixes them is refused.
    """
    folder.mkdir(parents=True)
    case = labelled_case(folder)
    label = nib.load(case["label"])
    noise = np.random.default_rng(seed).random(label.shape)
    save_nifti(Path(case["image"]), (label.get_fdata() + noise).astype(np.float32), label.affine)
    for key in ("image", "label"):
        case[key] = Path(case[key]).name
    other = case | {"image": f"other_{case['image']}", "subject": "other"}
    shutil.copy(folder / case["image"], folder / other["image"])
    content = {"training": [case] * training, "validation": [other] * validation, "test": []}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def small_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of the network of SMALL."""
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "train.json")
    for key, value in SMALL.items():
        parser[key] = value
    torch.manual_seed(seed)
    return parser.get_parsed_content("network_def").state_dict()


def files_in(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
