"""What NVFlare runs at a site: the loop of its Client API around a ``FederatedSite``.

A job brings no code: it names ``HeadPoseExecutor``, which starts the site's own, installed copy
of this bundle. A site that allows this class and no job's own code knows what it will run.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import nvflare.client as flare
from nvflare.apis.dxo import MetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AlgorithmConstants
from nvflare.app_common.executors.client_api_executor import ClientAPIExecutor
from nvflare.client.config import ExchangeFormat

from .site import (
    FederatedSite,
    OtherNetwork,
    Plan,
    SiteError,
    finite,
    read_plan,
    read_release,
    read_site_file,
)

logger = logging.getLogger(__name__)

# names of what server and sites tell each other beside weights and metrics
PLAN, RELEASE, REFUSED, VOLUMES = "plan", "release", "refused", "validation_volumes"
# the site file, or a folder of them by name where several sites share a machine
SITE_FILE_VARIABLE = "HEAD_POSE_SITE"


class HeadPoseExecutor(ClientAPIExecutor):
    """What a job names at the sites: the Client API around this bundle's own script."""

    def __init__(self) -> None:
        super().__init__(
            "in_process",
            task_script_path=str(Path(__file__).with_name("start_client.py")),
            params_exchange_format=ExchangeFormat.PYTORCH,
        )


def main() -> None:
    """Answer the server's tasks until the job ends; what goes wrong is told, not raised.

    A site that refuses a task is asked again in the next round, so that its administrator can
    mend the data set while the job runs.
    """
    site: FederatedSite | None = None
    flare.init()
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        try:
            meta = model.meta or {}
            release = read_release(meta.get(RELEASE))
            if site is None:
                site = _open(flare.get_site_name(), read_plan(meta.get(PLAN), release))
            site.check_weights(model.params, release)
            reply = _work(site, model)
        except SiteError as error:
            logger.error("refused: %s", error.detail)
            reply = FLModel(metrics={}, meta={REFUSED: str(error)})
            # all else may be mended by the next round, and is looked at anew
            site = site if isinstance(error, OtherNetwork) else None
        except Exception as error:
            # its text may name files of the site, so the server gets its kind only
            logger.exception("round %s failed", model.current_round)
            kind = type(error).__name__
            reply = FLModel(metrics={}, meta={REFUSED: f"failed ({kind}), see the site's log"})
            site = None
        # NVFlare's privacy filters draw their noise from numpy's global generator, which the
        # training has seeded: noise of a known seed would hide nothing
        np.random.seed()  # noqa: NPY002
        flare.send(reply)


def _open(name: str, plan: Plan) -> FederatedSite:
    place = os.environ.get(SITE_FILE_VARIABLE)
    if not place:
        raise SiteError(f"no site file: {SITE_FILE_VARIABLE} is not set at the site")
    path = Path(place)
    return FederatedSite(
        name, read_site_file(path / f"{name}.json" if path.is_dir() else path), plan
    )


def _work(site: FederatedSite, model: FLModel) -> FLModel:
    """Evaluate the global weights, then train from them unless only evaluation is asked."""
    round_number = model.current_round or 0
    # training changes the network that these may share memory with
    weights = {key: value.clone() for key, value in model.params.items()}
    metrics = finite(site.evaluate(weights, f"round_{round_number}"))
    meta = {VOLUMES: site.volumes["validation"]}
    if flare.is_evaluate():
        return FLModel(metrics=metrics, meta=meta)
    mu = float((model.meta or {}).get(AlgorithmConstants.FEDPROX_MU, 0.0))
    samples = site.train(weights, round_number, mu)
    return FLModel(
        params_type=ParamsType.DIFF,
        params=site.difference(weights),
        metrics=metrics,
        meta={**meta, MetaKey.NUM_STEPS_CURRENT_ROUND: samples},
    )
