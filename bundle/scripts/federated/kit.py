"""Start-up kits of NVFlare, made ready for this bundle and for nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

from ..files import write_text

# what jobs of this bundle name, beside NVFlare's own classes
CLASSES = (
    "scripts.federated.client.HeadPoseExecutor",
    "scripts.federated.server.HeadPoseFederation",
)
RETURNED_SITES = {"id": "returned_sites", "path": "scripts.federated.returned.ReturnedSites"}
# NVFlare's kits send the error log of every job to the server: it names files of the site
LOG_STREAMER = "nvflare.app_common.logging.site_log_streamer.SiteLogStreamer"
# a job's own code, and commands that read files of a site
FORBIDDEN = ("byoc", "shell_commands")


def prepare_kit(kit: str | os.PathLike[str]) -> list[Path]:
    """Write ``local/resources.json`` and ``local/authorization.json`` of a start-up kit.

    Both begin as copies of the kit's defaults. Jobs may name this bundle's classes beside
    NVFlare's; no job brings code; nobody may run shell commands on the machine; a site sends no
    log away; a server gets the component `ReturnedSites`. Doing it twice changes nothing.

    FileNotFoundError if the folder is no start-up kit.
    """
    written = []
    for name, content in prepared(kit).items():
        written.append(Path(kit) / "local" / f"{name}.json")
        write_text(written[-1], json.dumps(content, indent=2) + "\n")
    return written


def prepared(kit: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """What `prepare_kit` writes, by the names of the files without their endings.

    That of a prepared kit is what its files hold. FileNotFoundError as there.
    """
    local = Path(kit) / "local"
    resources, authorization = (_given(local / name) for name in ("resources", "authorization"))
    listed = resources.setdefault("class_allow_list", list(DEFAULT_CLASS_ALLOW_LIST))
    listed.extend(name for name in CLASSES if name not in listed)
    components = [c for c in resources["components"] if c["path"] != LOG_STREAMER]
    if (Path(kit) / "startup" / "fed_server.json").exists():
        components = [*(c for c in components if c != RETURNED_SITES), RETURNED_SITES]
    else:
        resources["allow_log_streaming"] = False
    resources["components"] = components
    permissions = authorization["permissions"]
    rights = {right for role in permissions.values() if isinstance(role, dict) for right in role}
    for name, role in permissions.items():
        # "any" instead of a list of rights means all of them
        granted = role if isinstance(role, dict) else dict.fromkeys(sorted(rights), role)
        permissions[name] = granted | dict.fromkeys(FORBIDDEN, "none")
    return {"resources": resources, "authorization": authorization}


def _given(path: Path) -> dict[str, Any]:
    """Content of ``path``.json, or of its default."""
    for candidate in (path.with_suffix(".json"), path.with_suffix(".json.default")):
        if candidate.exists():
            return json.loads(candidate.read_text())
    raise FileNotFoundError(f"{path}.json.default: no such file, this is not a start-up kit")
