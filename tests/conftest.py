"""Fixtures: the bundle on the path, volumes with known landmarks in many orientations."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

REPOSITORY = Path(__file__).parents[1]
BUNDLE = REPOSITORY / "bundle"
sys.path[:0] = [str(BUNDLE), str(REPOSITORY / "tools")]

# entries of train.json that make the network step in well under a second
SMALL_CHAIN = {
    "network_def#crop_size": 8,
    "network_def#localizer_channels": [4, 4, 4, 4, 4, 4],
    "network_def#landmarks#features": [8, 8, 8],
    "network_def#landmarks#crop_size": 16,
    "cube_voxels": 16,
}
SMALL_ROTATION = {
    "network_def#rotation#features": [1, 1],
    "network_def#rotation#levels": 2,
    "network_def#rotation#convolutions": 1,
}

# landmarks in the head frame, mm; no symmetry maps them onto themselves
LANDMARKS = np.array([[30.0, 0, 0], [0, 36.0, 0], [0, 0, 42.0], [-24.0, -30.0, -18.0]])
GRIDS = {
    "RAS": ("RAS", (3.0, 3.0, 3.0), 0.0),
    "LAS": ("LAS", (3.0, 3.0, 3.0), 0.0),
    "LPS": ("LPS", (3.0, 3.0, 3.0), 0.0),
    "PIL": ("PIL", (3.0, 3.0, 3.0), 0.0),
    "oblique": ("RAS", (3.0, 3.0, 3.0), 25.0),
    "anisotropic": ("LIP", (2.5, 3.0, 4.5), 12.0),
}


def rotation_matrix(seed: int) -> np.ndarray:
    """A random rotation, from scipy and so independent of the code under test."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(random_state=seed).as_matrix()


def head_pose(seed: int = 3) -> np.ndarray:
    """A head_to_world (4, 4) with a general rotation, near the world's origin."""
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrix(seed)
    pose[:3, 3] = [7.0, -12.0, 9.0]
    return pose


def make_affine(axcodes: str, voxel_mm: tuple[float, ...], tilt_deg: float, shape) -> np.ndarray:
    """Voxel-to-world matrix whose volume is centred at the world's origin."""
    from scipy.spatial.transform import Rotation

    orientation = nib.orientations.axcodes2ornt(axcodes)
    matrix = np.zeros((3, 3))
    for voxel_axis, (world_axis, sign) in enumerate(orientation):
        matrix[int(world_axis), voxel_axis] = sign * voxel_mm[voxel_axis]
    matrix = (
        Rotation.from_euler("xyz", [tilt_deg, -tilt_deg / 2, 5], degrees=True).as_matrix() @ matrix
        if tilt_deg
        else matrix
    )
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = -matrix @ (np.array(shape) - 1) / 2
    return affine


def landmark_volume(pose: np.ndarray, affine: np.ndarray, shape) -> np.ndarray:
    """A Gaussian blob of 6 mm at each landmark, of heights 1, 2, 3, 4, rendered in world mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    volume = np.zeros(shape, dtype=np.float32)
    for height, point in enumerate(LANDMARKS @ pose[:3, :3].T + pose[:3, 3], start=1):
        volume += height * np.exp(-0.5 * ((world - point) ** 2).sum(-1) / 36.0)
    return volume


def find_landmarks(image: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Centres (4, 3) of the blobs of ``landmark_volume`` in grid mm, in the order of LANDMARKS.

    No pose enters: the blobs are the connected components, and their mass grows with the height.
    """
    components, count = ndimage.label(image > 0.1 * image.max())
    assert count == len(LANDMARKS), f"{count} blobs"
    index = np.arange(1, count + 1)
    order = np.argsort(ndimage.sum_labels(image, components, index))
    centers = np.array(ndimage.center_of_mass(image, components, index))[order]
    return spacing_mm * (centers - (np.array(image.shape) - 1) / 2)


def save_nifti(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> str:
    """Write a NIfTI file, of 3 mm RAS voxels unless told otherwise."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(volume, affine), path)
    return str(path)


def labelled_case(folder: Path) -> dict:
    """Files of a noisy head in LAS: brain of radius 27 mm around the head's origin, two eyes."""
    shape, pose = (48, 50, 52), head_pose()
    affine = make_affine("LAS", (3.0, 3.0, 3.0), 0.0, shape)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    head = (index @ affine[:3, :3].T + affine[:3, 3] - pose[:3, 3]) @ pose[:3, :3]
    label = np.zeros(shape, dtype=np.uint8)
    label[np.linalg.norm(head, axis=-1) < 27] = 1
    for x in (-15.0, 15.0):
        label[np.linalg.norm(head - [x, 34.0, -20.0], axis=-1) < 9] = 2
    image = (label + np.random.default_rng(0).random(shape)).astype(np.float32)
    return {
        "image": save_nifti(folder / "head.nii.gz", image, affine),
        "label": save_nifti(folder / "head_label.nii.gz", label, affine),
        "head_to_world": pose.tolist(),
        "subject": "head",
    }


@pytest.fixture(params=list(GRIDS))
def landmark_case(request, tmp_path):
    """A NIfTI file of blobs at the landmarks, its pose, and a label that is empty."""
    axcodes, voxel_mm, tilt = GRIDS[request.param]
    shape = tuple(int(200 / v) for v in voxel_mm)
    affine, pose = make_affine(axcodes, voxel_mm, tilt, shape), head_pose()
    image = nib.Nifti1Image(landmark_volume(pose, affine, shape), affine)
    label = nib.Nifti1Image(np.zeros(shape, dtype=np.uint8), affine)
    nib.save(image, tmp_path / "image.nii.gz")
    nib.save(label, tmp_path / "label.nii.gz")
    return {
        "image": str(tmp_path / "image.nii.gz"),
        "label": str(tmp_path / "label.nii.gz"),
        "head_to_world": pose.tolist(),
        "subject": request.param,
    }


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ages of an atlas: an ellipsoid, brighter in front, with ventricles in its middle."""
    root = tmp_path_factory.mktemp("atlas")
    for age in (24, 25):
        folder = root / f"fetal_GA{age}_notoperated"
        folder.mkdir()
        affine = np.diag([2.0, 2, 2, 1])
        affine[:3, 3] = -40, -50, -38
        i, j, k = np.indices((40, 50, 40)) * 2.0
        x, y, z = i - 40, j - 50, k - 38
        size = (x / 28) ** 2 + (y / 36) ** 2 + (z / 26) ** 2
        mask = size < 1
        parcellation = np.where(size < 1, np.where(size < 0.7, 1, 5), 0)
        parcellation[size < 0.2] = 2
        t2 = np.where(mask, 100 + y, 0)
        for name, values in (("srr", t2), ("mask", mask), ("parcellation", parcellation)):
            nib.save(nib.Nifti1Image(values.astype(np.int16), affine), folder / f"{name}.nii.gz")
    return root
