"""A component of NVFlare's server: sites that come back while their job still runs."""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext


class ReturnedSites(FLComponent):
    """Stops the server waiting for the outcome of a worker that a site has lost.

    When a site's process dies and is started again at once, NVFlare 2.9 logs it in under a new
    token and never learns that the worker of the old one is gone. Without that worker's own
    outcome it marks the job as failed, though all rounds were completed without it.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """At every login: what the same site left behind is over."""
        if event_type != EventType.CLIENT_REGISTER_PROCESSED:
            return
        site = fl_ctx.get_peer_context().get_identity_name()
        runner = fl_ctx.get_engine().job_runner
        for job_id in runner.get_client_outcome_jobs(site):
            self.log_warning(fl_ctx, f"{site} is back, without its worker of job {job_id}")
            runner.resolve_client_outcome(job_id, site)
