"""Table and picture of a simulated federation, from the bundle's folder:

python -m scripts.federated.report O --alone O/alone --picture O/rounds.png
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluation.case_table import read_case_table
from ..evaluation.tables import aligned
from .site import HISTORY

Columns = Mapping[str, Sequence[float]]
# medians of errors, because a head that is not found is infinitely far off
ROWS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("rotation, median (degrees)", "rotation_deg", np.median),
    ("translation, median (mm)", "translation_mm", np.median),
    ("Dice of the brain, mean", "dice_brain", np.mean),
)
PANELS = (("rotation_deg", "rotation error, median (degrees)"), ("dice_brain", "Dice of the brain"))


def read_history(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rounds.json of a folder. FileNotFoundError if there is none, ValueError if it is bad."""
    path = Path(folder) / HISTORY
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; it is written when the last round is over")
    try:
        history = json.loads(path.read_text())
        best = [record["round"] for record in history if record["best"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a history of rounds: {error!r}") from error
    if not best:
        raise ValueError(f"{path}: no round was the best")
    return history


def best_round(history: Sequence[Mapping[str, Any]]) -> int:
    """The round whose weights were kept: the last that was better than all before it."""
    return max(record["round"] for record in history if record["best"])


def compare(
    output_dir: str | os.PathLike[str], alone_dir: str | os.PathLike[str] | None = None
) -> str:
    """Text table of the errors before, after training alone and after federation.

    All are of the weights that were kept, on the same validation volumes of each site; "pooled"
    takes all volumes of all sites together.
    """
    output = Path(output_dir)
    history = read_history(output)
    sites = sorted({site for record in history for site in record["sites"]})
    kept = best_round(history)
    tables: dict[str, dict[str, Columns]] = {
        "before": {site: _cases(output / site, 0) for site in sites}
    }
    if alone_dir is not None:
        alone = Path(alone_dir)
        tables["alone"] = {
            site: _cases(alone / site, best_round(read_history(alone / site))) for site in sites
        }
    tables["federated"] = {site: _cases(output / site, kept) for site in sites}
    rows = [["", "", *tables]]
    for site in [*sites, "pooled"]:
        for number, (title, key, summary) in enumerate(ROWS):
            cells = []
            for table in tables.values():
                values = np.concatenate(
                    [table[name][key] for name in (sites if site == "pooled" else [site])]
                )
                values = values[~np.isnan(values)]
                cells.append(f"{summary(values):.2f}" if len(values) else "-")
            rows.append(["" if number else site, title, *cells])
    volumes = sum(len(table["rotation_deg"]) for table in tables["before"].values())
    return (
        f"{aligned(rows)}\n{volumes} validation volumes; "
        f"federated weights of round {kept} of {history[-1]['round']}"
    )


def _cases(folder: Path, round_number: int) -> Columns:
    return read_case_table(folder / f"cases_round_{round_number}.csv")


def draw_rounds(
    path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    alone_dir: str | os.PathLike[str] | None = None,
) -> None:
    """PNG of the validation errors of the global weights at every site before each round.

    Dashed: the site training alone. A vertical line marks the weights that were kept.
    """
    history = read_history(output_dir)
    sites = sorted({site for record in history for site in record["sites"]})
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, (key, label) in enumerate(PANELS):
        axes = figure.add_subplot(1, len(PANELS), number + 1)
        axes.axvline(best_round(history), color="0.6", linewidth=1, label="weights kept")
        for k, site in enumerate(sites):
            colour = f"C{k}"
            values = [_metric(record["sites"].get(site), key) for record in history]
            rounds = [record["round"] for record in history]
            axes.plot(rounds, values, color=colour, marker="o", label=f"{site}, federated")
            if alone_dir is not None:
                own = read_history(Path(alone_dir) / site)
                values = [_metric(record, key) for record in own]
                rounds = [record["round"] for record in own]
                axes.plot(rounds, values, color=colour, linestyle="--", label=f"{site}, alone")
        axes.set(xlabel="rounds of training", ylabel=label, ylim=(0, None))
        axes.set_xticks(range(history[-1]["round"] + 1))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    canvas.print_png(os.fspath(path))


def _metric(record: Mapping[str, Any] | None, key: str) -> float:
    return math.nan if record is None else record["metrics"].get(key, math.nan)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `compare` and `draw_rounds`."""
    parser = argparse.ArgumentParser(prog="python -m scripts.federated.report")
    parser.description = "Compare a simulated federation with sites that train alone."
    parser.add_argument("output_dir", help="of scripts.federated.job simulate")
    parser.add_argument("--alone", help="output_dir of scripts.federated.job alone")
    parser.add_argument("--picture", help="PNG of the rounds")
    options = parser.parse_args(arguments)
    try:
        print(compare(options.output_dir, options.alone))
        if options.picture:
            draw_rounds(options.picture, options.output_dir, options.alone)
            print(f"picture: {options.picture}")
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
