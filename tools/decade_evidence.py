"""Kinds of evidence for a claim, as functions over the runs of ``benchmarks/decade.py``, and the rules of a verdict.

A piece of evidence is a mean difference in accuracy, in points, paired by seed and averaged over the sparsities, with
the 95% interval of Student's t over the seeds. The rules on this interval:

- :func:`more`, "A is better than B": holds if the interval is above zero, does not if it is below.
- :func:`no_less`, "A loses nothing": holds if the interval is above minus the margin; if not, and it is below zero, it
  does not hold.
- :func:`alike`, "A and B do not differ": holds if the interval is within the margin on both sides; if not, and it
  leaves out zero, it does not hold.

In all other cases no difference was seen. What was not run, or from one seed only, has no verdict.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.decade_ranks import EQUAL, OF_METHODS, by_seed, mean_and_interval, of_races, sparsities_of
from tutorial_lib.compare import in_words

HOLDS, NOT, NO_DIFFERENCE = "holds here", "does not hold here", "no difference seen"
IN_PART, NOT_TESTABLE = "holds in part", "not testable here"
NOT_RUN, ONE_SEED = "not run yet", "one seed only"
FOR_COMPARISON = ""  # the verdict of a piece that is only told beside others
SMALL, FULL = 1000, 60_000  # training images
TASKS = {SMALL: "1,000 images", FULL: "all of MNIST"}
MARGINS = {SMALL: 0.5, FULL: 0.1}  # points
ALL, TWO = (0.9, 0.95, 0.98, 0.99, 0.995), (0.95, 0.99)
RACES = (*EQUAL, "variations", "shares", "widths")  # in which a contender's name says all
# Contenders that grow at random, and so differ in what they prune, how often and how much.
AT_RANDOM = ("Deep Rewiring, own", "SET, common", "SET, own", "ITOP, own", "MEST, common", "MEST, own")
WIDTHS = (0.25, 0.5, 1.0, 2.0)
MOST_FREQUENT = (
    11.35  # percent of MNIST's test images that show a 1: the most that a network that is cut in two reaches
)


@dataclass(frozen=True)
class Found:
    """A piece of evidence: on what, its numbers in words, and its verdict."""

    what: str
    numbers: str
    verdict: str


Evidence = Callable[[pd.DataFrame], list[Found]]
Rule = Callable[[float, float], str]


@dataclass(frozen=True)
class Side:
    """Runs of a contender, on so many training images, in these races."""

    contender: str
    images: int
    races: tuple[str, ...] = RACES

    def of(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Return the runs of these races."""
        return of_races(runs, self.images, *self.races)


# ------------------------------------------------------------------------------------------ verdicts


def more(low: float, high: float) -> str:
    """Return whether a difference is above zero."""
    return HOLDS if low > 0 else NOT if high < 0 else NO_DIFFERENCE


def no_less(low: float, high: float, margin: float) -> str:
    """Return whether a difference is at most ``margin`` below zero."""
    return HOLDS if low > -margin else NOT if high < 0 else NO_DIFFERENCE


def alike(low: float, high: float, margin: float) -> str:
    """Return whether a difference is at most ``margin`` on either side of zero."""
    return HOLDS if -margin < low and high < margin else NOT if low > 0 or high < 0 else NO_DIFFERENCE


def judged(what: str, samples: pd.Series, rule: Rule) -> Found:
    """Return mean, interval and verdict of differences from each seed."""
    mean, low, high = mean_and_interval(samples)
    if math.isnan(mean):
        return Found(what, "", NOT_RUN)
    return Found(what, signed(mean, low, high), ONE_SEED if math.isnan(low) else rule(low, high))


def signed(mean: float, low: float, high: float) -> str:
    """Return a difference with its interval in words."""
    return in_words(mean, low, high).replace("-", "−")


def short(contender: str) -> str:
    """Return a contender's name without the kind of its settings."""
    return re.sub(r", (common and own|common|own)$", "", contender)


def overall(pieces: Sequence[Found]) -> str:
    """Return the verdict of all pieces together; those without one do not count."""
    verdicts = {piece.verdict for piece in pieces} - {FOR_COMPARISON}
    found = verdicts - {NOT_RUN, ONE_SEED}
    if len(found) <= 1:
        return found.pop() if found else ONE_SEED if ONE_SEED in verdicts else NOT_RUN
    return IN_PART if HOLDS in found else NOT


def told_only(piece: Found) -> Found:
    """Return a piece of evidence that is told beside others, without a verdict."""
    return Found(piece.what, piece.numbers, FOR_COMPARISON)


# ------------------------------------------------------------------------------------------ kinds of evidence


def gap(runs: pd.DataFrame, ours: Side, theirs: Side, sparsities: Sequence[float]) -> pd.Series:
    """Return the difference of two sides from each seed that both have, averaged over the sparsities."""
    first, second = (by_seed(side.of(runs), side.contender, sparsities) for side in (ours, theirs))
    return (first - second).dropna()


def trained(runs: pd.DataFrame, ours: Side, theirs: Side, among: Sequence[float]) -> list[float]:
    """Return those of the sparsities at which both sides were trained."""
    at = [sparsities_of(side.of(runs), side.contender) for side in (ours, theirs)]
    return [s for s in among if all(s in there or 0.0 in there for there in at)]


def better(*pairs: tuple[str, str], at: Sequence[float], images: Sequence[int] = tuple(TASKS)) -> Evidence:
    """The first contender of each pair is more accurate than the second."""
    return _compared(pairs, at, dict.fromkeys(images, more))


def without_loss(*pairs: tuple[str, str], at: Sequence[float], images: Sequence[int] = tuple(TASKS)) -> Evidence:
    """The first contender of each pair is as accurate as the second, or more."""
    return _compared(pairs, at, {n: functools.partial(no_less, margin=MARGINS[n]) for n in images})


def equal(*pairs: tuple[str, str], at: Sequence[float], images: Sequence[int] = tuple(TASKS)) -> Evidence:
    """Both contenders of each pair are equally accurate."""
    return _compared(pairs, at, {n: functools.partial(alike, margin=MARGINS[n]) for n in images})


def _in_words(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return each pair as a difference, with the kinds of settings only where two pairs differ in nothing else."""
    words = [f"{short(ours)} − {short(theirs)}" for ours, theirs in pairs]
    whole = [" − ".join(pair) for pair in pairs]
    return [one if words.count(one) == 1 else all_ for one, all_ in zip(words, whole, strict=True)]


def _compared(pairs: Sequence[tuple[str, str]], at: Sequence[float], rules: dict[int, Rule]) -> Evidence:
    words = _in_words(pairs)

    def find(runs: pd.DataFrame) -> list[Found]:
        found = []
        for ((ours, theirs), name), (n, rule) in itertools.product(zip(pairs, words, strict=True), rules.items()):
            sides = Side(ours, n), Side(theirs, n)
            there = trained(runs, *sides, at)
            what = f"{name}, {TASKS[n]}, {', '.join(f'{100 * s:g}%' for s in there)}"
            found.append(judged(what, gap(runs, *sides, there) if there else pd.Series(dtype=float), rule))
        return found

    return find


def beside(main: Evidence, other: Evidence) -> Evidence:
    """The first evidence; the numbers of the second are told for comparison."""
    return lambda runs: [*main(runs), *map(told_only, other(runs))]


def longer(contender: str, rule: Rule) -> Evidence:
    """A contender that is trained five times longer than the dense network, at each sparsity; and as long as it."""

    def find(runs: pd.DataFrame) -> list[Found]:
        dense, usual, long = Side("dense", SMALL), Side(contender, SMALL), Side(contender, SMALL, ("length",))
        found = [judged(f"five times longer, {s:.0%}", gap(runs, long, dense, (s,)), rule) for s in TWO]
        before = [judged(f"equal length, {s:.0%}", gap(runs, usual, dense, (s,)), rule) for s in TWO]
        return [*found, *map(told_only, before)]

    return find


def gain_of_length(contender: str, other: str) -> Evidence:
    """Five times longer training adds more to the accuracy of the first contender."""

    def find(runs: pd.DataFrame) -> list[Found]:
        gains = [gap(runs, Side(name, SMALL, ("length",)), Side(name, SMALL), TWO) for name in (contender, other)]
        return [judged(f"gain of {short(contender)} − gain of {short(other)}", (gains[0] - gains[1]).dropna(), more)]

    return find


def early(contender: str, other: str) -> Evidence:
    """After one epoch the first contender is more accurate."""

    def find(runs: pd.DataFrame) -> list[Found]:
        sides = [Side(name, FULL, ("first epoch",)) for name in (contender, other)]
        return [judged(f"{contender} − {other}", gap(runs, *sides, TWO), more)]

    return find


def slope_over_widths(runs: pd.DataFrame) -> list[Found]:
    """The difference of the static network to the dense one of equal width rises with the width."""
    gaps = pd.DataFrame(
        {w: gap(runs, Side(f"static, width {w}", SMALL), Side(f"dense, width {w}", SMALL), (0.95,)) for w in WIDTHS}
    ).dropna()
    slopes = pd.Series([np.polyfit(np.log2(WIDTHS), row, 1)[0] for row in gaps.to_numpy()], dtype=float)
    means = ", ".join(f"{width:g}: {mean:.2f}".replace("-", "−") for width, mean in gaps.mean().items())
    return [judged(f"points for each doubling (by width {means})", slopes, more)]


def exploration_explains(runs: pd.DataFrame) -> list[Found]:
    """Of contenders that grow at random, those that explore more are more accurate: Spearman's correlation."""
    found = []
    for images, task in TASKS.items():
        mine = of_races(runs[runs["contender"].isin(AT_RANDOM)], images, OF_METHODS)
        samples = [
            np.mean([at["exploration"].corr(at["accuracy"], method="spearman") for _, at in of.groupby("sparsity")])
            for _, of in mine.groupby("seed")
        ]
        found.append(judged(f"correlation, {task}", pd.Series(samples, dtype=float), more))
    return found


def never_cut(contender: str, others: Sequence[str]) -> Evidence:
    """All networks of a contender are better than one with an empty layer can be; those of others for comparison."""

    def find(runs: pd.DataFrame) -> list[Found]:
        found = []
        for images, task in TASKS.items():
            lowest = of_races(runs, images, OF_METHODS).groupby("contender")["accuracy"].min()
            for name in (contender, *others):
                numbers = f"{lowest[name]:.2f}" if name in lowest else ""
                verdict = NOT_RUN if not numbers else HOLDS if lowest[name] > MOST_FREQUENT else NOT
                verdict = verdict if name == contender else FOR_COMPARISON
                found.append(Found(f"lowest of {short(name)}, {task}", numbers, verdict))
        return found

    return find


def needs(what: str) -> Evidence:
    """A claim about something that is not here."""
    return lambda runs: [Found(f"needs {what}", "", NOT_TESTABLE)]
