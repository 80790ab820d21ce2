"""``report.html`` and ``poses.tsv``: what a run found, for people."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ignite.engine import Engine, Events
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as Picture

from ..files import replacing
from ..labels import Status
from ..reading.printable import printable
from .about import made_by
from .outputs import SERIES, CaseFiles
from .pose_table import pose_table
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

ORDER = list(Status)
# cases up to this number: width of their pictures in pixels; JPEG of 960 is about 30 KB
WIDTHS = {60: 960, 250: 640, 10**9: 480}


class ReportWriter:
    """Handler that writes ``poses.tsv`` and ``report.html`` once a run is through.

    Both are made from what the folder keeps of every case of the run, those of before a
    ``--resume`` included. What goes wrong is logged: no page is worth the poses.

    Parameters
    ----------
    folder : of the run; ``report`` has to be among its outputs
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        for path, reason in self.folder.left_aside:
            logger.info("left aside: %s: %s", path, reason)
        others = self.folder.others()
        if others:
            logger.warning(
                "%s also holds %d cases of earlier runs, which are not in this one's report: %s",
                self.folder.output_dir,
                len(others),
                ", ".join(others[:10]),
            )
        if "report" not in self.folder.outputs:
            return
        records = cache(self.folder.records)  # which reads all of them
        # each for itself: the table must not go without the page
        for name, content in (("poses.tsv", _table), ("report.html", report_page)):
            try:
                text = content(records(), self.folder)
                with replacing(self.folder.output_dir / name) as partial:
                    partial.write_text(text, encoding="utf-8")
            except Exception as error:
                logger.warning("%s not written: %s", name, error)


def _table(found: list[tuple[CaseFiles, dict[str, Any]]], folder: RunFolder) -> str:
    return pose_table(record for _, record in found)


def report_page(found: list[tuple[CaseFiles, dict[str, Any]]], folder: RunFolder) -> str:
    """The page as text: it holds its pictures, and asks for nothing from anywhere.

    ``found`` are the files and records of the cases. Names and messages are escaped.
    """
    width = next(pixels for number, pixels in WIDTHS.items() if len(found) <= number)
    counts = Counter(record["status"] for _, record in found)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report_page.html").render(
        cases=[_case(files, record, width) for files, record in found],
        counts=sorted(counts.items(), key=lambda pair: ORDER.index(Status(pair[0]))),
        left_aside=[(printable(path), printable(reason)) for path, reason in folder.left_aside],
        series=_series(folder, width),
        others=[printable(name) for name in folder.others()],
        made_by=made_by(
            folder.weights, folder.weights_sha256, folder.outputs, folder.uncertain_above_deg
        ),
        colour=colour,
    )


def colour(status: str) -> str:
    """Class of the page's style sheet for a status.

    >>> colour("ok"), colour("unreadable")
    ('ok', 'bad')
    """
    return status if Status(status).usable else "bad"


def _case(files: CaseFiles, record: Mapping[str, Any], width: int) -> dict[str, Any]:
    """What the page shows of a case."""
    there = [path for path in dict.fromkeys(files.all()) if path.exists()]
    return {
        "name": printable(record["case"]),
        "record": record,
        "message": printable(record["message"]),
        "warnings": [printable(text) for text in record.get("warnings", ())],
        "picture": thumbnail(files.path("picture"), width),
        "motion": thumbnail(files.motion("png"), width),
        "files": [
            {"href": _href(path, files.output_dir), "label": _label(path, files)} for path in there
        ],
    }


def _series(folder: RunFolder, width: int) -> dict[str, Any] | None:
    """The motion over the cases of the run taken as one series, if it was written."""
    files = CaseFiles(folder.output_dir, SERIES)
    there = [path for path in files.all() if path.exists()]
    if SERIES in folder.cases or not there:
        return None
    return {
        "picture": thumbnail(files.motion("png"), max(width, 960)),
        "files": [
            {"href": _href(path, files.output_dir), "label": _label(path, files)} for path in there
        ],
    }


def _href(path: Path, folder: Path) -> str:
    """A link from the page to a file, right for any bytes in its name.

    >>> _href(Path("O/sub 1/a#b?.nii"), Path("O"))
    'sub%201/a%23b%3F.nii'
    """
    return quote(os.fsencode(path.relative_to(folder)))


def _label(path: Path, files: CaseFiles) -> str:
    """The end of a file's name, after what all files of the case share."""
    return printable(path.name.removeprefix(files.stem).lstrip("_"))


def thumbnail(path: Path, width: int) -> dict[str, Any] | None:
    """A picture as a data URI (JPEG, at most ``width`` pixels wide) with its size; None if there
    is none that can be read."""
    try:
        with Picture.open(path) as picture:
            small = picture.convert("RGB")
    except OSError:
        return None
    if small.width > width:
        height = round(small.height * width / small.width)
        small = small.resize((width, height), Picture.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=72, optimize=True)
    text = base64.b64encode(stream.getvalue()).decode()
    return {
        "source": f"data:image/jpeg;base64,{text}",
        "width": small.width,
        "height": small.height,
    }
