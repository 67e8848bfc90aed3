"""Tables about blocks of weights for ``docs/benchmarks.md``, from the record of ``benchmarks/co_design.py`` and others.

``python -m tools.readme_tables`` writes them.
"""

from __future__ import annotations

from typing import TypeAlias

import pandas as pd

from tutorial_lib import load_result
from tutorial_lib.compare import in_words, paired_difference

Table: TypeAlias = tuple[list[str], list[list[str]]]
TASKS = {60_000: "all of MNIST", 1000: "1,000 images"}
HOW = ("static", "SET", "RigL", "gradual")
MOVED = HOW[1:3]
BLOCKS = ("4×1", "4×4", "8×8", "16×1")
BOTH = "forward and gradients"
LAYER_AIMS = (  # row of ``benchmarks/structures.py``, rival, how many times faster
    ("linear 1000, batch 64, forward", "dense", 15),
    ("linear 1000, batch 256, forward", "dense", 12),
    ("linear 4096, batch 1, forward", "dense", 10),
    *(
        (f"linear 1000, batch {batch}, {BOTH}", rival, aim)
        for batch in (64, 256)
        for rival, aim in (("dense", 10), ("sparselab", 6), ("torch CSR", 3))
    ),
    (f"linear 4096, batch 64, {BOTH}", "dense", 10),
    (f"linear 4096, batch 256, {BOTH}", "dense", 10),
    (f"convolution 16, batch 64, {BOTH}", "1×1", 1.6),
)
NETWORK_AIMS = (
    ("inference of 100 images", "Dense+Mask", 30),
    ("inference of 100 images", "dense", 13),
    ("step of 64 images", "dense", 15),
    ("step of 64 images", "1×1", 1.6),
)


def study(images: int) -> pd.DataFrame:
    """Return the recorded runs on one task: one row each, without any if nothing is recorded."""
    recorded = load_result("co_design")
    runs = pd.DataFrame(recorded["rows"] if recorded else [], columns=None)
    return runs[runs["images"] == images] if len(runs) else runs


def accuracies_table(images: int) -> Table:
    """Return a row per structure and sparsity: the time of a step, and accuracies as mean and standard deviation."""
    runs = study(images)
    there = [how for how in HOW if len(runs) and how in set(runs["how"])]
    counts = {how: runs[runs["how"] == how]["seed"].nunique() for how in there}
    of = {how: f"{n} seed{'s' if n > 1 else ''}" for how, n in counts.items()}
    header = ["blocks", "sparsity", "step µs", *(f"{how} %, {of[how]}" for how in there)]
    rows = []
    for (structure, sparsity), part in runs.groupby(["structure", "sparsity"], sort=False) if len(runs) else []:
        accuracy = {str(how): of["accuracy"] for how, of in part.groupby("how")}
        means = [_mean_of(accuracy[how]) if how in accuracy else "" for how in there]
        rows.append([structure, f"{sparsity:.1%}", f"{part['step µs'].dropna().iloc[0]:.0f}", *means])
    return header, rows


def _mean_of(accuracy: pd.Series) -> str:
    return f"{accuracy.mean():.2f}" + (f" ± {accuracy.std():.2f}" if len(accuracy) > 1 else "")


def gains_table(images: int) -> Table:
    """Return a row per structure and rule: rewired minus static at each sparsity, in points, paired by seed."""
    runs = study(images)
    if not len(runs):
        return ["blocks", "rule"], []
    runs = runs.assign(contender=runs["structure"] + " " + runs["how"])
    sparsities, structures = sorted(set(runs["sparsity"])), list(dict.fromkeys(runs["structure"]))

    def gain(structure: str, how: str, sparsity: float) -> str:
        found = paired_difference(runs, f"{structure} {how}", f"{structure} static", sparsity)
        return in_words(*found).replace("-", "−")

    rows = [[of, how, *(gain(of, how, s) for s in sparsities)] for of in structures for how in MOVED]
    return ["blocks", "rule", *(f"{s:.1%}" for s in sparsities)], rows


def aims_table() -> Table:
    """Return what blocks were meant to reach on all of MNIST, what was measured, and whether it was reached."""
    runs = study(60_000)
    header = ["all of MNIST, RigL", "measured", "aimed at", "reached"]
    if not len(runs):
        return header, []
    moved = runs[runs["how"] == "RigL"].assign(contender=lambda of: of["structure"])
    rows = []
    for structure, sparsity, most in (("4×4", 0.99, 0.2), ("8×8", 0.99, 0.4)):
        mean, low, high = paired_difference(moved, structure, "1×1", sparsity)
        words = in_words(mean, low, high).replace("-", "−")
        rows.append([f"{structure} − 1×1 at {sparsity:.0%}, points", words, f"≥ −{most}", yes(mean >= -most)])
    at_95 = moved[moved["sparsity"] == 0.95].groupby("structure", sort=False)[["accuracy", "step µs"]].mean()
    gains = at_95.loc["1×1", "step µs"] / at_95["step µs"]
    close = gains[at_95["accuracy"] >= at_95.loc["1×1", "accuracy"] - 0.1]
    fastest = close.idxmax()
    work = "fastest step at 95% within 0.1 points of 1×1, × 1×1"
    rows.append([work, f"{close[fastest]:.2f} ({fastest})", "≥ 1.6", yes(close[fastest] >= 1.6)])
    front = _front(runs)
    count = int(((front["how"] != "static") & (front["structure"] != "1×1")).sum())
    work = "rewired blocks on the front of error against step time"
    rows.append([work, f"{count} of {len(front)}", "all", yes(count == len(front))])
    return header, rows


def speeds_table() -> Table:
    """Return how fast blocks were meant to be, what ``benchmarks/structures.py`` measured, and whether it was reached.

    The best structure counts, by the fastest of many calls.
    """
    header, recorded = ["95% sparse, best blocks", "measured", "aimed at", "reached"], load_result("structures")
    if recorded is None:
        return header, []
    rows = []

    def note(work: str, rival: str, aim: float, of: dict[str, dict[str, float]]) -> None:
        microseconds = {name: row["fastest µs"] for name, row in of.items()}
        best = min(microseconds[name] for name in (*BLOCKS, "auto") if name in microseconds)
        work = f"{work}, × {rival}"
        if rival not in microseconds:
            rows.append([work, "not measured", f"≥ {aim:g}", ""])
            return
        gain = microseconds[rival] / best
        rows.append([work, f"{gain:.{1 if gain >= 10 else 2}f}", f"≥ {aim:g}", yes(gain >= aim)])

    for work, rival, aim in LAYER_AIMS:
        note(work, rival, aim, recorded["rows"][work])
    for scheme in ("uniform", "erk"):
        for work, rival, aim in NETWORK_AIMS:
            note(f"CNN, {scheme}, {work}", rival, aim, recorded["networks"][f"{scheme}, {work}"])
    return header, rows


def convolution_words() -> str:
    """Return how much faster than single weights the recorded convolution could be at most, in some sentences."""
    layer, bound = load_result("structures"), load_result("bound")
    if layer is None or bound is None:
        return "Not recorded yet."
    of = {name: row["fastest µs"] for name, row in layer["rows"][f"convolution 16, batch 64, {BOTH}"].items()}
    passes = bound["rows"]["convolution 4×4, batch 64"]
    work = sum(passes[name]["Mflop"] for name in ("forward", "all gradients"))
    single, moved, computed = of["1×1"], of["one weight an output"], 1e3 * work / bound["rates"]["GFLOP/s"]
    return (
        f"In both passes of this convolution, moving the activations takes {moved:,.0f} of the {single:,.0f} µs of "
        f"single weights. All multiply-adds need at least {computed:,.0f} µs, at the rate of `make bound`. If nothing "
        f"is moved while the cores compute, and moving takes as long as now, a structure is at most "
        f"{single / (moved + computed):.2f} times faster than single weights here."
    )


def yes(reached: bool) -> str:
    """Return whether an aim was reached, in a word."""
    return "yes" if reached else "no"


def _front(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the networks than which no other is both faster and, in the mean, more accurate; the fastest first."""
    runs = runs.assign(error=100 - runs["accuracy"])
    means = runs.groupby(["structure", "sparsity", "how"], as_index=False)[["error", "step µs"]].mean()
    means = means.sort_values(["step µs", "error"])
    return means[means["error"] < means["error"].cummin().shift(fill_value=100.0)]


def front_words() -> str:
    """Return how the networks on the front of accuracy against step time are made, in a sentence."""
    runs = study(60_000)
    if not len(runs):
        return "Not recorded yet."
    front, networks = _front(runs), len(runs[["structure", "sparsity", "how"]].drop_duplicates())
    named = ", ".join(f"{row.structure} {row.how} at {row.sparsity:.1%}" for row in front.itertuples())
    moved, blocks = (front["how"] != "static").sum(), (front["structure"] != "1×1").sum()
    return (
        f"On all of MNIST, {len(front)} of these {networks} networks are on the front: no other is both faster and, "
        f"in the mean, more accurate. Of them {moved} are rewired and {blocks} have blocks. From the fastest: {named}."
    )


def diagonals_table() -> Table:
    """Return the times of products with weights on diagonals, single weights and blocks."""
    recorded = load_result("diagonals")
    rows = recorded["rows"] if recorded else {}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    body = [
        [work, *(f"{of[n]['µs']:.0f} ({of[n]['GFLOP/s']:.0f})" if n in of else "" for n in names)]
        for work, of in rows.items()
    ]
    return ["one product, 95% sparse: µs (GFLOP/s)", *names], body
