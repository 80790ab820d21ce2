"""From the fields of a NIfTI or Analyze header to voxel-to-world, RAS mm.

The fields are those of nifti1.h: qform (a quaternion, with pixdim) and sform (srow_x, y, z), each
with a code that is 0 where the header says nothing of it, and xyzt_units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..labels import Status
from .headers import by, check_affine, plausible, voxel_size_note, voxel_sizes_mm, with_voxel_sizes
from .image import Notes, VolumeError, reason

UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micrometre
DIFFERENT_DEG, DIFFERENT_MM = 1.0, 1.0
NO_FIELD_AT_1_MM = 200.0  # a matrix that is too small for a uterus if its voxels have 1 mm


def nifti_affine(
    header: Any,
    space: Sequence[int],
    voxel_mm: Sequence[float] | None,
    notes: Notes,
    shown: str,
) -> NDArray[np.float64]:
    """Affine (4, 4) of a header; what can hardly be meant is noted.

    space : voxels along i, j, k
    voxel_mm : sizes that replace those of the header, or None
    VolumeError "unreadable" : no affine that could be used
    """
    if isinstance(header, Nifti1Header):  # of which NIfTI-2 and pairs are kinds
        affine = _chosen(header, space, voxel_mm, notes, shown)
        affine = _in_mm(header, affine, space, notes)
    else:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        notes.doubt("an Analyze header says nothing of the sides: left and right may be exchanged")
    if voxel_mm is not None:
        before = voxel_sizes_mm(affine)
        affine = with_voxel_sizes(affine, voxel_mm)
        notes.warn(voxel_size_note(voxel_mm, before))
    check_affine(affine, space, notes, shown)
    return affine


def _chosen(
    header: Nifti1Header,
    space: Sequence[int],
    voxel_mm: Sequence[float] | None,
    notes: Notes,
    shown: str,
) -> NDArray[np.float64]:
    """sform where its code says so, else qform, else what the voxel sizes alone give."""
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if voxel_mm is not None and not (np.isfinite(pixdim).all() and pixdim.min() > 0):
        header = header.copy()
        header["pixdim"][1:4] = pixdim = np.asarray(voxel_mm, dtype=np.float64)
    codes = int(header["sform_code"]), int(header["qform_code"])
    sform = np.asarray(header.get_sform(), dtype=np.float64) if codes[0] > 0 else None
    qform = _qform(header, shown, needed=sform is None) if codes[1] > 0 else None
    if sform is not None and qform is not None and not np.isfinite(sform).all():
        notes.warn("the sform has values that are no numbers: the qform is used")
        sform = None
    if sform is not None and qform is not None:
        _compare(sform, qform, space, notes)
    if sform is not None:
        return _with_pixdim(sform, pixdim, space, notes)
    if qform is not None:
        return qform
    notes.doubt(
        "sform_code and qform_code are 0: the header says nothing of the sides, left and right may "
        "be exchanged (the first axis is taken to run to the left)"
    )
    return np.asarray(header.get_base_affine(), dtype=np.float64)


def _qform(header: Nifti1Header, shown: str, needed: bool) -> NDArray[np.float64] | None:
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except Exception as error:  # a quaternion that is none
        if needed:
            raise VolumeError(
                Status.UNREADABLE, f"{shown}: no affine: the qform is broken: {reason(error)}"
            ) from error
        return None
    return qform if needed or np.isfinite(qform).all() else None


def _compare(
    sform: NDArray[np.float64],
    qform: NDArray[np.float64],
    space: Sequence[int],
    notes: Notes,
) -> None:
    """Note where two forms of one header disagree; a mirror makes the sides doubtful."""
    with np.errstate(all="ignore"):
        signs = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3])
        sizes = voxel_sizes_mm(sform), voxel_sizes_mm(qform)
        turn = (sform[:3, :3] / sizes[0]) @ np.linalg.pinv(
            np.nan_to_num(qform[:3, :3] / sizes[1], posinf=0, neginf=0)
        )
    used = "the sform is used"
    if signs < 0:
        notes.doubt(f"sform and qform mirror each other, so left and right are unsure: {used}")
        return
    if not np.isfinite(turn).all() or np.linalg.matrix_rank(turn) < 3 or signs == 0:
        return
    turn_deg = np.degrees(Rotation.from_matrix(turn).magnitude())
    middle = np.append((np.asarray(space, dtype=np.float64) - 1) / 2, 1)
    apart_mm = float(np.linalg.norm((sform - qform) @ middle))
    if turn_deg > DIFFERENT_DEG or apart_mm > DIFFERENT_MM:
        notes.warn(
            f"sform and qform disagree by {turn_deg:.1f} degrees and, in the volume's middle, by "
            f"{apart_mm:.1f} mm: {used}"
        )


def _with_pixdim(
    sform: NDArray[np.float64],
    pixdim: NDArray[np.float64],
    space: Sequence[int],
    notes: Notes,
) -> NDArray[np.float64]:
    """An sform of bare rotations gets the voxel sizes that stand in pixdim."""
    sizes = voxel_sizes_mm(sform)
    if not np.isfinite(pixdim).all() or pixdim.min() <= 0:
        notes.warn(f"pixdim {by(pixdim)} is no voxel size: that of the sform is used, {by(sizes)}")
        return sform
    if np.allclose(sizes, pixdim, rtol=0.01):
        return sform
    extents = np.asarray(space) * sizes, np.asarray(space) * pixdim
    bare = np.allclose(sizes, 1, atol=1e-3) and extents[0].max() < NO_FIELD_AT_1_MM
    if bare and plausible(extents[1]):
        notes.warn(
            f"the sform has no voxel sizes ({by(sizes)}), pixdim has {by(pixdim)} mm: "
            "these are used"
        )
        return with_voxel_sizes(sform, pixdim)
    notes.warn(f"the sform has voxels of {by(sizes)} mm, pixdim {by(pixdim)}: the sform is used")
    return sform


def _in_mm(
    header: Nifti1Header, affine: NDArray[np.float64], space: Sequence[int], notes: Notes
) -> NDArray[np.float64]:
    """``affine`` in mm by the header's unit of length."""
    unit = int(header["xyzt_units"]) & 0x07
    factor = UNITS_MM.get(unit)
    if not unit or factor is None:
        said = "no unit of length" if not unit else f"an unknown unit of length ({unit})"
        notes.warn(f"the header names {said}: mm are taken")
        return affine
    if factor == 1:
        return affine
    name = "metres" if unit == 1 else "micrometres"
    scaled = affine.copy()
    scaled[:3] *= factor
    extents = [voxel_sizes_mm(a) * np.asarray(space) for a in (affine, scaled)]
    if plausible(extents[0]) and not plausible(extents[1]):
        notes.warn(
            f"the header names {name}, which gives a field of view of {by(extents[1])} mm: "
            "its numbers are taken as mm"
        )
        return affine
    notes.warn(f"the header's unit is {name}: converted to mm")
    return scaled
