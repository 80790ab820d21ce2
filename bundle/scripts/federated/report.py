"""Tables and pictures of what a federation gained, from the bundle's folder:

python -m scripts.federated.report O/ratings --rounds O --alone O/alone --picture O/rounds.png
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
from numpy.typing import NDArray
from scipy.stats import bootstrap, mannwhitneyu

from ..evaluation.case_table import read_case_table
from ..evaluation.drawing import LARGE_ERROR_DEG
from ..evaluation.tables import aligned, quantile
from .site import HISTORY

Columns = Mapping[str, NDArray[np.float64]]
# what a model says of the volumes of each site
Rating = Mapping[str, Columns]
ALL = "all sites"
# a head that is not found is 180 degrees and infinitely many mm off
ROWS: tuple[tuple[str, str, Callable[[NDArray], str]], ...] = (
    ("rotation, median (degrees)", "rotation_deg", lambda v: f"{quantile(v, 0.5):.1f}"),
    ("rotation, quartiles", "rotation_deg",
     lambda v: f"{quantile(v, 0.25):.1f}-{quantile(v, 0.75):.1f}"),
    ("not found or above 30 degrees", "rotation_deg",
     lambda v: f"{np.sum(v > LARGE_ERROR_DEG)}/{len(v)}"),
    ("translation, median (mm)", "translation_mm", lambda v: f"{quantile(v, 0.5):.1f}"),
    ("Dice of the brain, mean", "dice_brain", lambda v: f"{np.mean(v):.2f}"),
)  # fmt: skip
PANELS = (
    ("rotation_mean_deg", "rotation error, mean (degrees)"),
    ("dice_brain", "Dice of the brain"),
)
# lower where a network has seen the volume, if it betrays that
LOSSES: tuple[tuple[str, Callable[[Columns], NDArray]], ...] = (
    ("1 - Dice of the brain", lambda columns: 1 - columns["dice_brain"]),
    ("rotation error", lambda columns: columns["rotation_deg"]),
)


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


def read_ratings(folder: str | os.PathLike[str], section: str = "test") -> dict[str, Rating]:
    """What `rating.rate` wrote for a section: the sites' columns by the names of the models.

    FileNotFoundError if there is nothing.
    """
    ratings: dict[str, dict[str, Columns]] = {}
    root = Path(folder) / section
    for path in sorted(root.rglob("*.csv")):
        model = path.parent.relative_to(root).as_posix()
        columns = {name: np.array(values) for name, values in read_case_table(path).items()}
        ratings.setdefault(model, {})[path.stem] = columns
    if not ratings:
        raise FileNotFoundError(f"{root}: no ratings; `job rate` writes them")
    return dict(ratings)


def column(rating: Rating, name: str, sites: Sequence[str]) -> NDArray[np.float64]:
    """Values of some sites' volumes with a head, one after another."""
    values = np.concatenate([rating[site][name] for site in sites])
    heads = np.concatenate([~np.isnan(rating[site]["rotation_deg"]) for site in sites])
    return values[heads]


def families(ratings: Mapping[str, Rating]) -> dict[str, dict[str, Rating]]:
    """The models by the part of their names before "/": one, or one of each site.

    >>> families({"before": {}, "alone/a": {}, "alone/b": {}})
    {'before': {'': {}}, 'alone': {'a': {}, 'b': {}}}
    """
    grouped: dict[str, dict[str, Rating]] = {}
    for name, rating in ratings.items():
        family, _, site = name.partition("/")
        grouped.setdefault(family, {})[site] = rating
    return grouped


def compare(ratings: Mapping[str, Rating], order: Sequence[str] = ()) -> str:
    """Text table: a column for each model, for each site its own where there is one of each.

    In the rows of all sites, models of single sites answer for all: each of them on all volumes,
    so that such a column stands for as many times the volumes.

    Parameters
    ----------
    ratings : see `read_ratings`
    order : of the columns; those not named come last
    """
    grouped = families(ratings)
    names = sorted(grouped, key=lambda name: (order.index(name) if name in order else 99, name))
    sites = sorted({site for rating in ratings.values() for site in rating})
    rows = [["", "", *names]]
    for site in sites:
        for number, (title, key, summary) in enumerate(ROWS):
            models = [grouped[name].get(site, grouped[name].get("")) for name in names]
            cells = ["-" if m is None else summary(column(m, key, [site])) for m in models]
            volumes = len(column(next(m for m in models if m is not None), key, [site]))
            rows.append(["" if number else f"{site} (n {volumes})", title, *cells])
    for number, (title, key, summary) in enumerate(ROWS):
        cells = [
            summary(np.concatenate([column(model, key, sites) for model in grouped[name].values()]))
            for name in names
        ]
        rows.append(["" if number else ALL, title, *cells])
    return aligned(rows)


def gain(
    ratings: Mapping[str, Rating], model: str, other: str, key: str = "rotation_deg"
) -> tuple[float, float, float]:
    """By how much a model's mean error is below another's on all sites: mean, 95 % interval.

    Paired over the volumes (percentile bootstrap, Efron 1979). Where ``other`` is one model of each
    site, a volume's error is the mean of theirs.
    """
    grouped = families(ratings)
    sites = sorted(next(iter(grouped[model].values())))
    errors = [
        np.mean([column(rating, key, sites) for rating in grouped[name].values()], axis=0)
        for name in (other, model)
    ]
    difference = errors[0] - errors[1]
    if np.ptp(difference) == 0:
        return (float(difference[0]),) * 3
    found = bootstrap((difference,), np.mean, method="percentile", rng=0).confidence_interval
    return float(np.mean(difference)), float(found.low), float(found.high)


def gains(ratings: Mapping[str, Rating], model: str = "federated") -> str:
    """A line for every other model: how much further off it is than ``model``, on all sites."""
    lines = []
    for other in families(ratings):
        if other != model:
            mean, low, high = gain(ratings, model, other)
            lines.append(
                f"mean rotation error, {other} less {model}: {mean:+.2f} degrees "
                f"(95 % interval {low:+.2f} to {high:+.2f})"
            )
    return "\n".join(lines)


def membership(seen: Mapping[str, Rating], unseen: Mapping[str, Rating]) -> str:
    """Text table: can the loss tell volumes that were trained on from volumes that were not?

    The area under the ROC curve of a test that calls the volume with the lower loss a member (Yeom
    et al. 2018, arXiv 1709.01604); 0.5 is chance. Of models of single sites, each is asked of its
    own site's volumes, and their mean is given.

    Parameters
    ----------
    seen, unseen : ratings on the training section, and on one that no model was trained on
    """
    sites = sorted({site for rating in seen.values() for site in rating})
    rows = [["", *(title for title, _ in LOSSES)]]
    for name, models in families(seen).items():
        cells = []
        for _, loss in LOSSES:
            areas = []
            for site, model in models.items():
                others = unseen[f"{name}/{site}" if site else name]
                places = [site] if site else sites
                losses = ([loss(which[place]) for place in places] for which in (model, others))
                areas.append(_area(*losses))
            cells.append(f"{np.mean(areas):.2f}")
        rows.append([name, *cells])
    return aligned(rows)


def _area(members: Sequence[NDArray], others: Sequence[NDArray]) -> float:
    """Mean over the sites, so that a site with easy volumes does not pass for one that was seen."""
    areas = []
    for inside, outside in zip(members, others, strict=True):
        inside, outside = inside[~np.isnan(inside)], outside[~np.isnan(outside)]
        above = mannwhitneyu(outside, inside, method="asymptotic").statistic
        areas.append(above / (len(inside) * len(outside)))
    return float(np.mean(areas))


def draw_rounds(
    path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    alone_dir: str | os.PathLike[str] | None = None,
) -> None:
    """PNG of the validation errors of the global weights at every site, over the training.

    Dashed: the site training alone, as many epochs, whatever its number of rounds. A vertical line
    marks the weights that were kept.
    """
    history = read_history(output_dir)
    sites = sorted({site for record in history for site in record["sites"]})
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, (key, label) in enumerate(PANELS):
        axes = figure.add_subplot(1, len(PANELS), number + 1)
        kept = 100 * best_round(history) / history[-1]["round"]
        axes.axvline(kept, color="0.6", linewidth=1, label="weights kept")
        for k, site in enumerate(sites):
            colour = f"C{k}"
            values = [_metric(record["sites"].get(site), key) for record in history]
            axes.plot(
                _shares(history), values, color=colour, marker="o", label=f"{site}, federated"
            )
            if alone_dir is not None:
                own = read_history(Path(alone_dir) / site)
                values = [_metric(record, key) for record in own]
                axes.plot(
                    _shares(own), values, color=colour, linestyle="--", label=f"{site}, alone"
                )
        axes.set(xlabel="share of the training (%)", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    canvas.print_png(os.fspath(path))


def _shares(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Per cent of the training that was done before each rating."""
    return [100 * record["round"] / history[-1]["round"] for record in history]


def _metric(record: Mapping[str, Any] | None, key: str) -> float:
    return math.nan if record is None else record["metrics"].get(key, math.nan)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the tables and of `draw_rounds`."""
    parser = argparse.ArgumentParser(prog="python -m scripts.federated.report")
    parser.description = "What a federation gained, from the ratings of scripts.federated.job rate."
    parser.add_argument("ratings", help="output_dir of scripts.federated.job rate")
    parser.add_argument("--rounds", help="output_dir of scripts.federated.job simulate")
    parser.add_argument("--alone", help="output_dir of scripts.federated.job alone")
    parser.add_argument("--picture", help="PNG of the rounds; needs --rounds")
    options = parser.parse_args(arguments)
    if options.picture and not options.rounds:
        parser.error("--picture needs --rounds")
    try:
        ratings = read_ratings(options.ratings)
        print(compare(ratings, ("before", "alone", "federated", "personal", "pooled")))
        if "federated" in families(ratings):
            print(gains(ratings))
        if (Path(options.ratings) / "training").is_dir():
            print(membership(read_ratings(options.ratings, "training"), ratings))
        if options.rounds:
            history = read_history(options.rounds)
            print(f"weights of round {best_round(history)} of {history[-1]['round']} were kept")
        if options.picture:
            draw_rounds(options.picture, options.rounds, options.alone)
            print(f"picture: {options.picture}")
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
