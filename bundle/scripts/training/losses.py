"""Training losses: symmetry-aware rotation loss on the field of axes, segmentation loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cubes import cube_cells
from ..distributed import mean
from ..labels import BACKGROUND, BRAIN, EYES, UNKNOWN
from ..network.head_pose_net import TrainingOutput
from ..network.landmarks import Landmarks


class AxisFieldLoss(nn.Module):
    """Distance of a field of axes from the true frame, blind to the sign of e_x.

    A term per voxel and a term on the pooled axes. With v the vectors of the field and n their
    directions,

        voxel  = mean [ (1 - |n_x . e_x|) + (1 - n_y . e_y) + (1 - n_z . e_z) ]
        pooled = 1 - sum (v_x . e_x)^2 / sum |v_x|^2
                 + (1 - cos(sum v_y, e_y)) + (1 - cos(sum v_z, e_z))

    The pooled term is what ``network.pool_axes`` reads the pose from; it trains the lengths of the
    vectors, so that voxels which show nothing learn to be silent.

    Only angles between prediction and target enter, so turning both together changes nothing.
    (The authors' component-wise L1 depends on how the head lies in the array.)

    Parameters
    ----------
    voxel_weight, pooled_weight : weights of the two terms

    Shapes: field ``(batch, 3, 3, s, s, s)`` and rotation ``(batch, 3, 3)``, whose columns are the
    axes, in the same frame -> loss of every item ``(batch,)``.
    """

    def __init__(self, voxel_weight: float = 0.25, pooled_weight: float = 1.0) -> None:
        super().__init__()
        self.voxel_weight, self.pooled_weight = voxel_weight, pooled_weight

    def forward(self, field: Tensor, rotation: Tensor) -> Tensor:
        vectors, target = _vectors(field, rotation)
        total = vectors[:, 1:].sum(-1)
        others = 1 - functional.cosine_similarity(total, target[:, 1:, :, 0], dim=-1, eps=1e-6)
        pooled = _right(vectors, target) + others.sum(1)
        return self.voxel_weight * _voxel(vectors, target) + self.pooled_weight * pooled


class AxisEvidenceLoss(nn.Module):
    """How improbable the true frame is, by a field of axes taken as evidence; blind to e_x's sign.

    As ``AxisFieldLoss``, but each vector of e_y and e_z adds to the natural parameter of a von
    Mises-Fisher distribution of that axis (Mardia and Jupp 2000, Directional Statistics): with k
    the mean of v over the voxels times ``evidence``, in place of 1 - cos there is

        log(4 pi sinh |k| / |k|) - k . e

    A frame that is surely wrong, upside down or back to front, weighs much, where 1 - cos has no
    slope; and one that cannot be known may stay vague.

    Parameters
    ----------
    voxel_weight : of the term per voxel, which is that of ``AxisFieldLoss``
    evidence : factor of the mean vector

    Shapes as for ``AxisFieldLoss`` -> loss of every item ``(batch,)``, of either sign.
    """

    def __init__(self, voxel_weight: float = 0.1, evidence: float = 5.0) -> None:
        super().__init__()
        self.voxel_weight, self.evidence = voxel_weight, evidence

    def forward(self, field: Tensor, rotation: Tensor) -> Tensor:
        vectors, target = _vectors(field, rotation)
        natural = self.evidence * vectors[:, 1:].mean(-1)  # (batch, axis, component)
        size = torch.linalg.vector_norm(natural, dim=-1).clamp(min=1e-3)
        # log sinh, without overflow
        normalizer = size + torch.log1p(-torch.exp(-2 * size)) + math.log(2 * math.pi) - size.log()
        others = normalizer - (natural * target[:, 1:, :, 0]).sum(-1)
        right = _right(vectors, target)
        return self.voxel_weight * _voxel(vectors, target) + right + others.sum(1)


def _vectors(field: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (batch, axis, component, voxel) of a field, and the true axes with one voxel."""
    if field.shape[1:3] != (3, 3) or rotation.shape != (field.shape[0], 3, 3):
        raise ValueError(
            "expected a field (batch, 3, 3, s, s, s) and rotations (batch, 3, 3), got "
            f"{tuple(field.shape)} and {tuple(rotation.shape)}"
        )
    return field.flatten(3).float(), rotation.mT.unsqueeze(-1)


def _voxel(vectors: Tensor, target: Tensor) -> Tensor:
    """Mean over the voxels of 1 - cos for each axis, blind to the sign of e_x: (batch,)."""
    unit = functional.normalize(vectors, dim=2, eps=1e-6)
    cosine = (unit * target).sum(2)  # (batch, axis, voxel)
    return (1 - cosine[:, 0].abs() + 2 - cosine[:, 1] - cosine[:, 2]).mean(1)


def _right(vectors: Tensor, target: Tensor) -> Tensor:
    """Share of the squared vectors of e_x that does not lie along it: (batch,)."""
    along = (vectors[:, 0] * target[:, 0]).sum(1).square().sum(1)
    return 1 - along / vectors[:, 0].square().sum((1, 2)).clamp(min=1e-12)


class SegmentationLoss(nn.Module):
    """Weighted cross entropy + soft Dice of background, brain and eyes, for partial labels.

    Voxels labelled ``UNKNOWN`` do not count. A volume with a brain but without eyes in its label
    says nothing of eyes: there the eye probability is added to the background's (marginal loss,
    Shi et al. 2021), so that unlabelled eyes are not unlearned.

    Parameters
    ----------
    class_weights : of the cross entropy, for background, brain, eyes (1, 8, 2 in E(3)-Pose). Eyes
        are few voxels.
    reduction : "none", or "mean" over the batch

    Shapes: logits ``(batch, 3, x, y, z)`` and label ``(batch, 1, x, y, z)`` -> loss ``(batch,)``,
    or a scalar.
    """

    class_weights: Tensor

    def __init__(
        self, class_weights: Sequence[float] = (1.0, 3.0, 30.0), reduction: str = "none"
    ) -> None:
        super().__init__()
        if reduction not in ("none", "mean"):
            raise ValueError(f'reduction must be "none" or "mean", got {reduction!r}')
        self.reduction = reduction
        self.register_buffer("class_weights", torch.tensor(class_weights), persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        # one item at a time stays in a CPU's cache
        items = zip(logits.flatten(2).unbind(), label.flatten(1).unbind(), strict=True)
        # the sums are matrix products, which autocast would do in a precision that overflows
        with torch.autocast(logits.device.type, enabled=False):
            loss = torch.stack([self._of_item(*item) for item in items])
        return loss.mean() if self.reduction == "mean" else loss

    def _of_item(self, logits: Tensor, label: Tensor) -> Tensor:
        """Of logits (3, voxels) and a label (voxels): a scalar."""
        logits = logits.float()
        of_class = torch.stack([label == k for k in (BACKGROUND, BRAIN, EYES)]).to(logits.dtype)
        count = of_class.sum(1)
        if count[BRAIN] > 0 and count[EYES] == 0:
            background, brain, eyes = logits.unbind()
            logits = torch.stack([torch.logaddexp(background, eyes), brain])
        classes = len(logits)
        weights, of_class, count = self.class_weights[:classes], of_class[:classes], count[:classes]
        log_probability = logits.log_softmax(0)
        # sums over voxels as products need no temporaries of that size
        entropy = -(weights @ torch.linalg.vecdot(log_probability, of_class))
        entropy = entropy / (weights @ count).clamp(min=1)
        probability = log_probability[BRAIN:].exp()
        of_class, count = of_class[BRAIN:], count[BRAIN:]
        foreground = probability @ (label != UNKNOWN).to(logits.dtype)
        overlap = torch.linalg.vecdot(probability, of_class)
        dice = 1 - (2 * overlap + 1e-5) / (foreground + count + 1e-5)
        return entropy + (dice * (count > 0)).sum() / 2


class LandmarkLoss(nn.Module):
    """Loss of ``landmarks.LandmarkNet`` on cubes; what the reference does not know does not count.

    Distance of the points + cross entropy of the heat maps against Gaussians around the reference +
    binary cross entropy of the score.

    Parameters
    ----------
    point_weight, heatmap_weight, score_weight : weights of the terms
    sigma : standard deviation of the Gaussians, in sides of the cube

    The target has ``crop_point`` (batch, 3, 3) and ``crop_aligned`` (batch,), NaN where
    unknown, as ``head_crops.RandHeadCropsd`` makes them. Returns a scalar.
    """

    def __init__(
        self,
        point_weight: float = 15.0,
        heatmap_weight: float = 0.3,
        score_weight: float = 1.0,
        sigma: float = 0.045,
    ) -> None:
        super().__init__()
        self.point_weight, self.heatmap_weight = point_weight, heatmap_weight
        self.score_weight = score_weight
        self.sigma = sigma

    def forward(self, found: Landmarks, target: Mapping[str, Tensor]) -> Tensor:
        point = target["crop_point"].float()
        known = ~point.isnan().any(2)
        point = torch.where(known[..., None], point, 0.0)
        distance = (found.point.float() - point).square().sum(2).add(1e-8).sqrt()
        heatmap = found.heatmap.float().flatten(2)
        cells = cube_cells(found.heatmap.shape[-1], device=point.device).flatten(0, 2)
        squares = (cells - point[:, :, None]).square().sum(-1)
        there = torch.softmax(-squares / (2 * self.sigma**2), dim=-1)
        entropy = -(there * heatmap.log_softmax(2)).sum(2)
        aligned = target["crop_aligned"].float()
        score = functional.binary_cross_entropy_with_logits(
            found.score.float(), aligned.nan_to_num(), reduction="none"
        )
        return (
            self.point_weight * _mean_where(distance, known)
            + self.heatmap_weight * _mean_where(entropy, known)
            + self.score_weight * _mean_where(score, ~aligned.isnan())
        )


def _mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of those that count, 0 if none does; in several processes that of the whole batch."""
    number = mean(counts.float().sum())
    return (values * counts).sum() / number.clamp(min=1e-6)


class HeadPoseLoss(nn.Module):
    """Sum of the losses; items without a head or without a label skip the part they lack.

    Localizer, E3CNN and LandmarkNet share no parameters, so the sum trains each as if alone.

    The prediction is what HeadPoseNet gives in training. The target has ``label`` (batch, 1, x, y,
    z), ``head_to_grid`` (batch, 4, 4) and ``has_head`` (batch,), 1 or 0, and what ``LandmarkLoss``
    needs. Returns a scalar, the mean over the items with a head and over all items. In several
    processes the mean over their losses is that of the whole batch, although some of them see more
    heads than others; all of them must call.
    """

    def __init__(
        self,
        rotation_weight: float = 1.0,
        segmentation_weight: float = 1.0,
        voxel_weight: float = 0.25,
        pooled_weight: float = 1.0,
        class_weights: Sequence[float] = (1.0, 3.0, 30.0),
        landmark_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.rotation_weight = rotation_weight
        self.segmentation_weight = segmentation_weight
        self.landmark_weight = landmark_weight
        self.landmarks = LandmarkLoss()
        self.rotation = AxisFieldLoss(voxel_weight, pooled_weight)
        self.segmentation = SegmentationLoss(class_weights)

    def forward(self, prediction: TrainingOutput, target: Mapping[str, Tensor]) -> Tensor:
        logits, field, landmarks = prediction
        has_head = target["has_head"].to(torch.float32)
        rotation = self.rotation(field, target["head_to_grid"][:, :3, :3].to(torch.float32))
        heads = mean(has_head.sum())  # in each process; 0 only where no process has one
        rotation = (rotation * has_head).sum() / heads.clamp(min=1e-6)
        segmentation = self.segmentation(logits, target["label"])
        total = self.rotation_weight * rotation + self.segmentation_weight * segmentation.mean()
        if landmarks is not None:
            total = total + self.landmark_weight * self.landmarks(landmarks, target)
        return total
