"""A page of a session that is over: what was answered, when, and how the head moved."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 14px; } td, th { padding: 2px 10px; text-align: right;
border-bottom: 1px solid #ddd; } td:last-child, th:last-child { text-align: left; }
img { max-width: 100%; } .ok { background: #d9f2e1; }
.uncertain, .predicted { background: #fff0c2; }
.no_pose { background: #fbd9d9; }
"""


def session_report(
    name: str, answers: Sequence[dict[str, Any]], picture: Path | None, reason: str
) -> str:
    """HTML of one self-contained page.

    answers : as they were sent; picture : PNG of the motion, taken into the page; reason : why the
    session ended
    """
    counts = Counter(answer["status"] for answer in answers)
    late = [answer["latency_ms"] for answer in answers]
    lines = [f"{len(answers)} answers: " + ", ".join(f"{n} {s}" for s, n in counts.items())]
    if late:
        middle, most = np.percentile(late, [50, 99])
        lines.append(f"answered after {middle:.0f} ms (median), {most:.0f} ms (99 %)")
    lines.append(f"ended: {reason}")
    image = ""
    if picture is not None:
        text = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="motion of the head" src="data:image/png;base64,{text}">'
    rows = "\n".join(_row(answer) for answer in answers)
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{escape(name)}</title><style>{STYLE}</style>
<h1>{escape(name)}</h1>
<p>Research software, not a medical device. This page is patient data.</p>
<ul>{items}</ul>
{image}
<table><tr><th>navigator</th><th>status</th><th>confidence</th><th>latency (ms)</th><th>slice</th>
<th>message</th></tr>
{rows}
</table></html>
"""


def _row(answer: dict[str, Any]) -> str:
    given = answer["slice"]
    cells = (
        answer["navigator"],
        answer["status"],
        f"{answer['confidence']:.3f}",
        f"{answer['latency_ms']:.0f}",
        "" if given is None else given["number"],
        answer["message"],
    )
    inside = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    return f'<tr class="{escape(str(answer["status"]))}">{inside}</tr>'
