"""Tables of cases: a row a case, a column a metric."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather

from ..distributed import is_not_rank0
from ..files import write_text


class CaseTable:
    """Handler that writes ``cases.csv``: a row per case, a column per metric.

    Of several processes, which all need the handler, rank 0 writes the cases of all, its own first.

    Parameters
    ----------
    path : file to write at the end of every run of the evaluator
    columns : names of the engine's metrics, as their details are kept
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)
        self._cases: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        self._cases.extend(batch["case"])

    def _write(self, engine: Engine) -> None:
        state: Any = engine.state
        # in the order of the ranks, as MONAI's metrics gather their values
        cases = string_list_all_gather(self._cases)
        if is_not_rank0():
            return
        details = {name: state.metric_details[name].flatten() for name in self.columns}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", *self.columns])
        for k, case in enumerate(cases):
            writer.writerow([case, *(f"{details[name][k].item():.4f}" for name in self.columns)])
        write_text(self.path, text.getvalue())


def read_case_table(path: str | os.PathLike[str]) -> dict[str, list[float]]:
    """Columns of a ``cases.csv`` without the names of the cases; see ``read_cases``."""
    return read_cases(path)[1]


def read_cases(path: str | os.PathLike[str]) -> tuple[list[str], dict[str, list[float]]]:
    """Names of the cases and columns of a ``cases.csv``, as CaseTable writes it.

    ValueError, naming the file, for no cases and for a row that lacks its name or a number.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path}: no cases")
    names: list[str] = []
    columns: dict[str, list[float]] = {name: [] for name in rows[0] if name != "case"}
    for number, row in enumerate(rows):
        try:
            names.append(row["case"])
            for name, column in columns.items():
                column.append(float(row[name]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: case {number} is not a name and {len(columns)} numbers: {row}"
            ) from error
    return names, columns
