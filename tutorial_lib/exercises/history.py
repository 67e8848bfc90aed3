"""Checks of the exercises of notebook 04."""

from __future__ import annotations

import numpy as np

from .checking import Answer, diagnose, exercise, expect, fresh, result
from .reading import array, close, in_short


@exercise
def check_exploration(answer: Answer) -> None:
    """``answer(masks)``: for each moment, the share of all connections that have been active up to then."""
    for moments in (4, 7, 1):
        masks = _masks(moments)
        given = result(answer, masks=masks)
        rates, seen = array(given), np.logical_or.accumulate(masks)
        expect(rates.shape == (moments,), f"expected one rate per moment, shape ({moments},); got {rates.shape}")
        diagnose(
            given,
            seen.mean(axis=1),
            {
                "that is the density of each moment; exploration includes the moments before": masks.mean(axis=1),
                "these are numbers of connections; divide by the number of all connections": seen.sum(axis=1),
                "these are percent; a share is from 0 to 1": 100 * seen.mean(axis=1),
                "divided by the number of active connections; divide by that of all": seen.sum(axis=1) / masks[0].sum(),
                "divided by the connections that were ever active; divide by the number of all": seen.sum(axis=1)
                / masks.any(axis=0).sum(),
                "divided by the number of moments; divide by that of connections": seen.sum(axis=1) / moments,
                "connections that grow back are counted twice": masks.cumsum(axis=0).mean(axis=1),
                "only connections that were active at every moment are counted": np.logical_and.accumulate(masks).mean(
                    axis=1
                ),
                "each moment includes those after it, not those before": np.logical_or.accumulate(masks[::-1])[
                    ::-1
                ].mean(axis=1),
                "these are the shares that were never active": 1 - seen.mean(axis=1),
            },
        )


@exercise
def check_survival(answer: Answer) -> None:
    """``answer(masks, birth)``: from ``birth`` on, the share of those born then that were never pruned since."""
    for moments, birth in ((6, 2), (5, 1), (6, 0), (4, 3)):
        masks = _telling_masks(moments, birth)
        given = result(answer, masks=masks, birth=birth)
        shares, length = array(given), moments - birth
        expect(
            shares.shape == (length,),
            f"expected one share per moment from birth on, shape ({length},); got {shares.shape}",
        )
        before = masks[birth - 1] if birth else np.zeros_like(masks[0])
        right = _survival(masks, birth, masks[birth] & ~before)
        if close(given, right):
            continue
        of = f"birth {birth}: {in_short(given)}"
        diagnose(given, right, _survival_mistakes(masks, birth, masks[birth] & ~before), of)


def _survival(masks: np.ndarray, birth: int, newborn: np.ndarray) -> np.ndarray:
    alive = np.logical_and.accumulate(masks[birth:][:, newborn])
    return alive.sum(axis=1) / newborn.sum() if newborn.any() else np.full(len(alive), np.nan)


def _survival_mistakes(masks: np.ndarray, birth: int, newborn: np.ndarray) -> dict[str, np.ndarray]:
    """Return symptoms, and what an answer with each returns."""
    right, rest, born = _survival(masks, birth, newborn), masks[birth:], newborn.sum()
    return {
        "all connections of moment 0 are born then; masks[-1] is the last moment": _survival(
            masks, birth, masks[birth] & ~masks[birth - 1]
        ),
        "some connections were active before: count only those born at this moment": _survival(
            masks, birth, masks[birth]
        ),
        "some connections were pruned and grew back: that is overlap; survival cannot rise again": rest[
            :, newborn
        ].mean(axis=1),
        "divided by all active connections; divide by those born at this moment": right * born / masks[birth].sum(),
        "divided by all connections; divide by those born at this moment": right * born / masks.shape[1],
        "these are numbers of connections; divide by the number born at this moment": right * born,
        "these are percent; a share is from 0 to 1": 100 * right,
        "these are the shares that were pruned": 1 - right,
        "born is what was active at no moment before, not only at the last one": _survival(
            masks, birth, masks[birth] & ~masks[:birth].any(axis=0)
        ),
    }


def _telling_masks(moments: int, birth: int) -> np.ndarray:
    """Return masks for which every mistake shows that can show at this birth, and differs from the others."""
    # At birth 0 all are newborn, at birth 1 there is only one moment before, and after birth 0 there is no masks[-1].
    shown = {0: 6, 1: 7}.get(birth, 8)
    while True:
        masks = _masks(moments)
        newborn = masks[birth] & ~masks[birth - 1] if birth else masks[0]
        mistakes = _survival_mistakes(masks, birth, newborn).values()
        wrong = {in_short(shares) for shares in mistakes if np.isfinite(shares).all()}
        if len(wrong - {in_short(_survival(masks, birth, newborn))}) == shown or birth == moments - 1:
            return masks


def _masks(moments: int) -> np.ndarray:
    """Return masks ``[moments, connections]`` in which connections of every history occur.

    Some are pruned and grow back. At every moment some are born, and most of them survive the next.
    """
    while True:
        masks = fresh().random((moments, int(fresh().integers(30, 60)))) < fresh().uniform(0.3, 0.5)
        born, regrown = masks[1:] & ~masks[:-1], masks[:-2] & ~masks[1:-1] & masks[2:]
        survivors, returned = born[:-1] & masks[2:], born[:-2] & ~masks[2:-1] & masks[3:]
        if masks[0].any() and all(part.any(axis=1).all() for part in (born, regrown, survivors, returned)):
            return masks
