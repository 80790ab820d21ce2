"""What the command line of ``python -m monai.bundle run`` said, before Fire and MONAI read it.

MONAI hands a config neither its own place nor what was typed. Both are found here: the workflow
that is being initialized on the stack of calls, and the texts in ``sys.argv``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai.bundle import ConfigWorkflow, create_workflow


@dataclass(frozen=True)
class Run:
    """A workflow of a config that is being initialized.

    Parameters
    ----------
    workflow : whose ``parser`` has the config
    config_files : that were asked for; empty where nobody can tell (``ConfigWorkflow(...)``)
    given : what was given beside them, as MONAI got it
    texts : the same as it was typed; empty unless the process is ``python -m monai.bundle``
    """

    workflow: ConfigWorkflow
    config_files: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


def is_command() -> bool:
    """Whether this process is ``python -m monai.bundle ...``."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", "") == "monai.bundle.__main__"


def typed_options(arguments: Sequence[str]) -> dict[str, str]:
    """Text of every ``--name text`` and ``--name=text``; a name without text has none.

    >>> typed_options(["run", "--dataset_dir", "1e5", "--resume", "--a#b=2", "--n", "-1"])
    {'dataset_dir': '1e5', 'a#b': '2', 'n': '-1'}
    """
    found: dict[str, str] = {}
    waiting = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            waiting = name.replace("-", "_")  # as Fire does
            if equals:
                found[waiting], waiting = text, ""
        elif waiting:
            found[waiting], waiting = argument, ""
    return found


def running() -> Run | None:
    """The workflow whose ``initialize`` calls this, however deep; None if there is none."""
    workflow: ConfigWorkflow | None = None
    frame = sys._getframe()
    while (above := frame.f_back) is not None:
        frame = above
        if workflow is None and isinstance(frame.f_locals.get("self"), ConfigWorkflow):
            workflow = frame.f_locals["self"]
        if workflow is not None and frame.f_code is create_workflow.__code__:
            files = frame.f_locals.get("config_file") or ()
            if isinstance(files, str) and "," in files:
                files = files.split(",")
            return Run(
                workflow,
                (str(files),) if isinstance(files, str) else tuple(map(str, files)),
                dict(frame.f_locals.get("_args") or {}),
                typed_options(sys.argv[1:]) if is_command() else {},
            )
    return Run(workflow) if workflow is not None else None
