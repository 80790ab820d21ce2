"""What HeadPoseNet finds, as evaluation and inference need it."""

from __future__ import annotations

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..cubes import Box
from ..geometry import no_head
from ..network.head_pose_net import HeadPoseNet


class HeadPoseInferer(Inferer):
    """``HeadPoseNet.predict`` as a dictionary, without gradients; no head is looked for again.

    A volume in which no head is found is turned by 120 degrees about its diagonal, which no more
    than exchanges its axes, and looked at again, perhaps once more at 240. The localizer is not
    equivariant: turned, it often sees a head that it had missed. But each look is another chance
    to take something else for a head, so a later one counts only if it is sure. The result is that
    of the first look that counts, in the axes of the volume as it came, or else that of the very
    first.

    With the reference ``box`` there is also ``reference_crop``, the pose when the crop is placed by
    the reference: the error of the rotation network alone, whatever the localizer does.

    Parameters
    ----------
    looks : at each volume at the most, 1 to 3; each takes as long as the first
    sure : least confidence of a head that a later look finds

    Raises
    ------
    ValueError : another number of looks
    """

    def __init__(self, looks: int = 2, sure: float = 0.95) -> None:
        if looks not in (1, 2, 3):
            raise ValueError(f"looks must be 1, 2 or 3, got {looks!r}")
        self.looks, self.sure = looks, sure

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: HeadPoseNet, box: Box | None = None
    ) -> dict[str, Tensor]:
        inputs = torch.as_tensor(inputs)
        output = network.predict(inputs)._asdict()
        for turns in range(1, self.looks):
            missed = no_head(output["head_to_grid"]).nonzero()[:, 0]
            if not len(missed):
                break
            again = _predict_turned(inputs[missed], network, turns)
            found = ~no_head(again["head_to_grid"]) & (again["confidence"] >= self.sure)
            for key, value in again.items():
                output[key] = output[key].index_put((missed[found],), value[found])
        if box is not None:
            output["reference_crop"] = network.predict(inputs, box).head_to_grid
        return output


def _predict_turned(volume: Tensor, network: HeadPoseNet, turns: int) -> dict[str, Tensor]:
    """What the network predicts of volumes whose axes are exchanged, in those they had before.

    Each turn puts the first axis last: by 120 degrees about the diagonal, around the middle.
    """
    for _ in range(turns):
        volume = volume.movedim(2, -1)
    output = network.predict(volume.contiguous())._asdict()
    pose = output["head_to_grid"]
    output["head_to_grid"] = torch.cat([pose[:, :3].roll(turns, dims=1), pose[:, 3:]], dim=1)
    for _ in range(turns):
        output["label"] = output["label"].movedim(-1, 2)
    return output
