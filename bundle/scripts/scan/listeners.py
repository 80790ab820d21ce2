"""Who may look on at a session."""

from __future__ import annotations

from typing import Any, Protocol

from .navigators import Navigator
from .pose_job import Found
from .session_options import SessionOptions


class Listener(Protocol):
    """Somebody who looks on: the folder, the console, Slicer. Must return at once."""

    def started(self, options: SessionOptions) -> None: ...

    def answered(
        self, navigator: Navigator | None, found: Found | None, answer: dict[str, Any]
    ) -> None: ...

    def ended(self, reason: str) -> None: ...
