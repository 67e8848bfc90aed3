"""Statistics over the runs of ``benchmarks/decade.py``: who is ranked where, and how far apart two contenders are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from tutorial_lib.compare import interval

OF_METHODS = "methods"  # the races of the methods, but for tickets, which take many trainings
EQUAL = (OF_METHODS, "tickets", "dense")  # races with the same network, steps and data: they may be compared
SEPARATOR = ", "  # between a method and its settings in a contender's name


def of_races(runs: pd.DataFrame, images: int, *races: str) -> pd.DataFrame:
    """Return the runs on so many images in these races, or in a part of one, such as ``methods, slow ones``."""
    return runs[(runs["images"] == images) & runs["race"].map(lambda race: race.partition(SEPARATOR)[0]).isin(races)]


def equal_terms(runs: pd.DataFrame, images: int) -> pd.DataFrame:
    """Return the runs on so many training images that had equal terms."""
    return of_races(runs, images, *EQUAL)


def ranks(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rank of each sparse contender, from 1 for the most accurate, in each pair of sparsity and seed.

    Pairs are those in which all these contenders were trained. Contenders with too few pairs are left out, so that as
    many runs as possible count.
    """
    table = runs[runs["sparsity"] > 0].pivot_table("accuracy", ["sparsity", "seed"], "contender")
    pairs = table.count()
    groups = (table[pairs.index[pairs >= least]].dropna() for least in sorted(set(pairs)))
    return max(groups, key=lambda group: group.size, default=table).rank(axis=1, ascending=False)


def mean_ranks(places: pd.DataFrame) -> pd.DataFrame:
    """Return each contender's mean rank with its 95% interval, best first: columns ``mean``, ``low``, ``high``.

    The interval is the bootstrap's (percentiles, 9,999 resamples of the pairs of sparsity and seed); NaN for one pair.
    """
    low = high = np.full(places.shape[1], math.nan)
    if len(places) > 1:
        found = stats.bootstrap((places.to_numpy(),), np.mean, axis=0, method="percentile", random_state=0)
        low, high = found.confidence_interval
    return pd.DataFrame({"mean": places.mean(), "low": low, "high": high}, index=places.columns).sort_values("mean")


def friedman(places: pd.DataFrame) -> tuple[float, float]:
    """Return statistic and p of Friedman's test that all contenders are alike; needs three of them and two rows."""
    found = stats.friedmanchisquare(*places.to_numpy().T)
    return float(found.statistic), float(found.pvalue)


def critical_difference(places: pd.DataFrame, alpha: float = 0.05) -> float:
    """Return how far apart two mean ranks must be to differ by Nemenyi's test (Demšar, 2006)."""
    rows, contenders = places.shape
    quantile = stats.studentized_range.ppf(1 - alpha, contenders, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(contenders * (contenders + 1) / (6 * rows)))


def sparsities_of(runs: pd.DataFrame, contender: str) -> set[float]:
    """Return the sparsities at which a contender was trained; 0 for a dense one."""
    return set(runs.loc[runs["contender"] == contender, "sparsity"])


def by_seed(runs: pd.DataFrame, contender: str, sparsities: Sequence[float]) -> pd.Series:
    """Return a contender's accuracy from each seed, averaged over the sparsities; a dense one is the same at each.

    A seed with which one of the sparsities was not run is left out.
    """
    mine = runs[runs["contender"] == contender]
    if (mine["sparsity"] == 0).any():
        return mine.groupby("seed")["accuracy"].mean()
    table = mine[mine["sparsity"].isin(sparsities)].pivot_table("accuracy", "seed", "sparsity")
    return table.reindex(columns=list(sparsities)).dropna().mean(axis=1)


def mean_and_interval(samples: pd.Series) -> tuple[float, float, float]:
    """Return a mean and its 95% interval by Student's t; NaN where there are too few samples."""
    samples = samples.dropna()
    return (float(samples.mean()), *interval(samples.tolist())) if len(samples) else (math.nan,) * 3
