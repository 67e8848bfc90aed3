"""What the notebooks say about their own numbers: each sentence with the numbers it rests on and what must hold.

``of`` takes a notebook's variables and returns plain values; ``holds`` tells from them alone whether the sentence is
true. The sentence stands in the notebook as it is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np


class Claim(NamedTuple):
    """One sentence of a notebook.

    Attributes:
        name: short, unique in its notebook.
        sentence: a part of the notebook's text.
        of: returns the values that the sentence is about.
        holds: whether it is true for these values.
    """

    name: str
    sentence: str
    of: Callable[[SimpleNamespace], tuple[Any, ...]]
    holds: Callable[..., bool]


def at(values: Any, share: float, shares: Any) -> float:
    """Return the value measured at a sparsity."""
    return float(values[list(shares).index(share)])


def fastest(run: Any, name: str) -> float:
    """Return the seconds of the fastest run of a benchmark's row: other programs on the machine delay single runs."""
    return float(min(run.seconds[name]))


def paradox() -> list[Claim]:
    """01: the network, and what is left of it after pruning."""
    return [
        Claim(
            "over-parameterised",
            "1.3 million parameters for ten digits. One layer, `fc3`, holds three quarters of them.",
            lambda v: (sum(v.weights.values()), v.weights["fc3.weight"]),
            lambda total, fc3: 1.3e6 < total < 1.4e6 and 0.7 < fc3 / total < 0.8,
        ),
        Claim(
            "dense learns",
            "Train it dense",
            lambda v: (v.dense_accuracy, v.dense_loss),
            lambda accuracy, loss: accuracy > 94 and 0 < loss < 0.3,
        ),
        Claim(
            "random removal",
            "Random removal destroys the network.",
            lambda v: (v.accuracy, v.dense_accuracy),
            lambda accuracy, dense: accuracy < 30 < dense,
        ),
        Claim(
            "small weights first",
            "A better choice than chance",
            lambda v: (at(v.magnitude_accuracy, 0.8, v.sparsities), at(v.random_accuracy, 0.8, v.sparsities)),
            lambda careful, random: careful > random + 10,
        ),
        Claim(
            "many go unnoticed",
            "Many of the weights can go, and the accuracy stays within a point.",
            lambda v: (at(v.magnitude_accuracy, 0.2, v.sparsities), v.dense_accuracy, 100 * max(v.still_good)),
            lambda pruned, dense, free: abs(pruned - dense) < 1 and 20 <= free < 95,
        ),
        Claim(
            "95% is too much",
            "At 95% even the careful choice loses nearly all of what was learned",
            lambda v: (at(v.magnitude_accuracy, 0.95, v.sparsities), v.dense_accuracy),
            lambda careful, dense: 0 < careful < 10 + (dense - 10) / 4,
        ),
        Claim(
            "two points",
            "at the price of about two points of accuracy in these recorded runs",
            lambda v: tuple(v.recorded["variants"][k]["test_accuracy"]["mean"] for k in ("dense", "set_uniform")),
            lambda dense, sparse: 1 < dense - sparse < 3,
        ),
        Claim(
            "bytes on paper",
            "On paper the network shrinks from 5.4 MB to a quarter of a megabyte",
            lambda v: (4e-6 * sum(v.weights.values()), 4e-6 * v.nnz),
            lambda dense, sparse: 5.3 < dense < 5.5 and 0.2 < sparse < 0.3,
        ),
    ]


def masked_layers() -> list[Claim]:
    """02: what a mask saves."""
    return [
        Claim(
            "fifty inputs",
            "On average fifty of the thousand inputs reach a digit.",
            lambda v: (int(v.masked.fc4.mask.sum()) / v.masked.fc4.mask.shape[0],),
            lambda inputs: 45 < inputs < 55,
        ),
        Claim(
            "stored gradient",
            "zero wherever the mask is zero. A removed weight cannot learn",
            lambda v: (
                float(v.layer.weight.grad[~v.layer.mask].abs().max()),
                float(v.product.grad[~v.layer.mask].abs().max()),
            ),
            lambda stored, product: stored == 0 < product,
        ),
        Claim(
            "momentum drifts",
            "It drifts on: the optimizer remembers.",
            lambda v: (float(v.weight[1]),),
            lambda removed: removed < -0.1,
        ),
        Claim(
            "larger",
            "The masked network is *larger* than the dense one",
            lambda v: (v.table["masked, 95% sparse"][0], v.table["dense"][0]),
            lambda masked, dense: masked > dense > 0,
        ),
        Claim(
            "multiplies zeros",
            "A dense kernel multiplies every zero.",
            lambda v: (v.table["masked, 95% sparse"][1], v.table["dense"][1], v.table["its active weights alone"][1]),
            lambda masked, dense, active: masked == dense > 10 * active > 0,
        ),
        Claim(
            "work of masking",
            "It stores everything, multiplies everything, and adds the work of masking.",
            lambda v: (1 / v.smaller, fastest(v.result, "masked") / fastest(v.result, "dense")),
            lambda bytes_, time: bytes_ > 1.2 and time > 0.6,
        ),
    ]


def dst_loop() -> list[Claim]:
    """03: the loop, the published recipe, and what changes it."""
    return [
        Claim(
            "three and three",
            "**Prune** the 3 smallest, **regrow** 3 elsewhere, and the number of connections is **maintained**.",
            lambda v: (len(v.pruned), len(v.grown), len(v.active), len(v.after)),
            lambda pruned, grown, before, after: pruned == grown == 3 and before == after == 12,
        ),
        Claim(
            "same walk",
            "Does it walk through the same topologies as ours?",
            lambda v: (np.array(v.same),),
            lambda same: len(same) == 18 and bool((same == 1).all()),
        ),
        Claim(
            "sparse starts late",
            "The sparse network starts late",
            lambda v: (v.sparse_history.test_accuracy[0], v.dense_history.test_accuracy[0]),
            lambda sparse, dense: sparse < dense,
        ),
        Claim(
            "published recipe",
            "95% sparse in all six layers, each with the same share",
            lambda v: (v.live["set_uniform"][0], v.live["dense"][0]),
            lambda sparse, dense: 86 < sparse < dense + 1 < 101,
        ),
        Claim(
            "recorded gap",
            "about two points below dense with 5% of the weights (recorded runs, full MNIST)",
            lambda v: tuple(
                v.load_result("results")["variants"][k]["test_accuracy"]["mean"] for k in ("dense", "set_uniform")
            ),
            lambda dense, sparse: 1 < dense - sparse < 3,
        ),
        Claim(
            "conv1 starves",
            "`conv1` is left with 7 of 144 weights, and 10% of 7 rounds down to 0",
            lambda v: (v.counts["uniform"]["conv1"], v.sizes["conv1"]),
            lambda left, size: (left, size) == (7, 144),
        ),
        Claim(
            "same total",
            "All three spend 67,173 weights.",
            lambda v: tuple(sum(count.values()) for count in v.counts.values()),
            lambda uniform, er, erk: uniform == er == erk == 67_173,
        ),
        Claim(
            "erk spends elsewhere",
            "gives small layers more and the huge one less",
            lambda v: tuple(v.counts[s][layer] for s in ("erk", "uniform") for layer in ("fc4", "fc3")),
            lambda small, huge, small_before, huge_before: small > small_before and huge < huge_before,
        ),
        Claim(
            "within a point",
            "Two more changes, which cost nothing.",
            lambda v: (v.rigl_accuracy, v.dense_cycle_accuracy),
            lambda rigl, dense: 90 < rigl and dense - rigl < 1.5,
        ),
        Claim(
            "together",
            "What do these changes add together?",
            lambda v: (v.rigl_accuracy, v.live["set_uniform"][0]),
            lambda rigl, published: rigl > published,
        ),
        Claim(
            "where the weights are",
            "with ERK densities even a topology that never moves is level with dense",
            lambda v: tuple(
                v.load_result("results")["variants"][k]["test_accuracy"]["mean"]
                for k in ("static_erk", "dense", "set_uniform")
            ),
            lambda static, dense, uniform: static > uniform + 1 and abs(static - dense) < 0.5,
        ),
        Claim(
            "constant budget",
            "The total is exactly the same:",
            lambda v: (int(v.total["active"]), int(v.total["weights"])),
            lambda active, weights: (active, weights) == (67_173, 1_343_456),
        ),
    ]


def mask_pictures() -> list[Claim]:
    """04: how the topology moves."""
    return [
        Claim(
            "four rewirings",
            "which rewires four times: after each fifth of the training but the last",
            lambda v: (len(v.slow) - 1,),
            lambda rewirings: rewirings == 4,
        ),
        Claim(
            "survivors",
            "Each rewiring replaces 10%.",
            lambda v: (v.survivors,),
            lambda left: 500 * 0.9**4 * 0.95 < left < 430,
        ),
        Claim(
            "exactly the same number",
            "All layers: the number of weights stays exactly the same",
            lambda v: tuple(v.counts["total"]),
            lambda *totals: set(totals) == {67_173},
        ),
        Claim(
            "conv1 never moves",
            "`conv1` never moves: it has 7 connections",
            lambda v: (v.regrown["conv1"], v.counts["conv1"].tolist()),
            lambda regrown, active: set(regrown) == {0} and set(active) == {7},
        ),
        Claim(
            "explores little",
            "The published recipe rewires four times and by a tenth: it explores little.",
            lambda v: (100 * v.slow.exploration()[-1],),
            lambda explored: 5 < explored < 10,
        ),
        Claim(
            "rigl explores more",
            "RigL moves far more.",
            lambda v: (100 * v.film.exploration()[-1], 100 * v.slow.exploration()[-1]),
            lambda rigl, slow: rigl > 1.5 * slow > 0,
        ),
        Claim(
            "few percent",
            "It tries a few percent of all connections; in the first layer it never moves one.",
            lambda v: (100 * v.slow.exploration()[-1] - 5, 100 * (v.slow.exploration("conv1")[-1] - 7 / 144)),
            lambda new, first: 0 < new < 5 and abs(first) < 1e-9,
        ),
        Claim(
            "newborn are smallest",
            "A new connection starts at zero, so it is among the smallest when the next rewiring comes.",
            lambda v: (
                float(np.median(v.lost_at_once)),
                100 - 100 * float(np.median(np.diagonal(v.film.overlaps(range(len(v.film))), 1))),
            ),
            lambda lost, replaced: lost > replaced,
        ),
        Claim(
            "early core",
            "how early does the final topology show?",
            lambda v: (v.early,),
            lambda early: 5 < early <= 100,
        ),
        Claim(
            "uneven neurons",
            "RigL does not keep the number of connections of a neuron: some gain many, some lose all or nearly all.",
            lambda v: tuple(int(np.ptp(v.film.degrees("fc3", moment)[side])) for side in (0, 1) for moment in (0, -1)),
            lambda inputs, later_inputs, outputs, later_outputs: later_inputs > inputs and later_outputs > outputs,
        ),
    ]


def fair_race() -> list[Claim]:
    """05: six rows, and the published table taken apart."""
    return [
        Claim(
            "csr does not win",
            "still does not win against the fastest dense row",
            lambda v: tuple(fastest(v.result, n) for n in ("torch CSR", "scipy CSR", "Dense, channels_last")),
            lambda torch_csr, scipy_csr, dense: min(torch_csr, scipy_csr) > dense > 0,
        ),
        Claim(
            "not 54 times",
            "But it is a few times slower (divide the medians), nowhere near 54 times.",
            lambda v: tuple(fastest(v.result, n) for n in ("torch CSR", "Dense, channels_last")),
            lambda csr, dense: 0 < csr / dense < 18,
        ),
        Claim(
            "ours is fastest",
            "they are the fastest of the six rows",
            lambda v: (fastest(v.result, "truly sparse"), *(fastest(v.result, name) for name in v.networks)),
            lambda ours, *all_rows: ours <= min(all_rows),
        ),
        Claim(
            "storage",
            "Here sparse storage wins, even though each value brings indices along.",
            lambda v: tuple(v.storage_bytes(v.networks[n]) for n in ("torch CSR", "Dense+Mask, folded (= Dense)")),
            lambda csr, dense: 0 < csr < dense / 5,
        ),
        Claim(
            "one cold call",
            "If it was so, the median was about a thousand times smaller than the mean.",
            lambda v: (float(v.ten_calls.mean()), float(np.median(v.ten_calls))),
            lambda mean, median: 1000 < mean / median < 2000,
        ),
        Claim(
            "median tells",
            "By the median the sparse loop takes about as long as dense",
            lambda v: (float(np.median(v.calls)), v.dense),
            lambda csr, dense: 0.05 < csr / dense < 20,
        ),
        Claim(
            "mean misleads",
            "by the mean a hundred times as long or more",
            lambda v: (float(np.mean(v.calls)), v.dense),
            lambda csr, dense: csr / dense > 50 and dense > 0,
        ),
        Claim(
            "stage left out",
            "Leave the convolutions out, and CSR looks much faster than Dense+Mask",
            lambda v: tuple(
                fastest(v.part, n)
                for n in ("torch CSR, fc layers only", "Dense+Mask, whole network", "torch CSR, whole network")
            ),
            lambda part, dense, whole: part < dense / 2 and part < whole / 2,
        ),
        Claim(
            "hidden copy",
            "many times slower when the conversion stands inside the timed call",
            lambda v: tuple(fastest(v.hidden, n) for n in ("CSR, converted in each call", "CSR, ready")),
            lambda converted, ready: converted > 3 * ready > 0,
        ),
    ]


def barriers() -> list[Claim]:
    """06: three barriers."""
    return [
        Claim(
            "executes everything",
            "the simulated network executes every multiplication and stores every weight",
            lambda v: (v.multiply_adds(v.masked, (1, 28, 28)).loc["total"].tolist(),),
            lambda work: max(work) > 15 * min(work) > 0,
        ),
        Claim(
            "dense code is better",
            "At 0% all do the same multiplications, and dense needs the least time",
            lambda v: tuple(min(v.runs.loc[0.0, n]) for n in ("dense", "torch CSR", "scipy CSR", "this project")),
            lambda dense, *others: dense < min(others),
        ),
        Claim(
            "crossover",
            "a star marks where a sparse format overtakes dense for good",
            lambda v: tuple(min(v.runs.loc[0.95, n]) for n in ("torch CSR", "this project", "dense")),
            lambda csr, ours, dense: csr < dense and ours < dense,
        ),
        Claim(
            "indices double",
            "Indices double the cost of a weight, so CSR pays off below half density.",
            lambda v: (float(v.density[v.formats["CSR (one int32 an entry)"] < v.formats["dense"]].max()),),
            lambda limit: 0.45 < limit < 0.51,
        ),
        Claim(
            "ten times",
            "At 5% it is ten times smaller than dense, not twenty.",
            lambda v: tuple(
                float(np.interp(0.05, v.density, v.formats[n])) for n in ("dense", "CSR (one int32 an entry)")
            ),
            lambda dense, csr: 9 < dense / csr < 11,
        ),
        Claim(
            "under the roof",
            "Both sparse products stand under the roof at 95%",
            lambda v: (
                *(2 * 0.05 * v.SIZE**2 * v.BATCH / min(v.runs.loc[0.95, n]) for n in ("torch CSR", "this project")),
                2 * 2000**3 / fastest(v.limits, "matmul"),
                8 * v.source.numel() / fastest(v.limits, "copy") * v.points["torch CSR, 95% sparse"]["intensity"],
            ),
            lambda csr, ours, peak, slope: max(csr, ours) < min(peak, slope),
        ),
        Claim(
            "dense moves zeros",
            "at 95%, dense has the lowest intensity of all, since most of what it moves are zeros",
            lambda v: tuple(v.points[f"{n}, 95% sparse"]["intensity"] for n in ("dense", "torch CSR", "this project")),
            lambda dense, *others: dense < min(others),
        ),
        Claim(
            "blocks",
            "A block shares one index among its weights, and one row of inputs among its outputs.",
            lambda v: tuple(fastest(v.by_block, f"blocks of {of}") for of in ("4×1", "1×1")),
            lambda blocks, single: 0 < blocks < single,
        ),
        Claim(
            "csr optimizer",
            "Which of an optimizer's usual steps does a CSR weight survive here?",
            lambda v: (v.attempt(lambda: v.csr_weight @ v.x),),
            lambda forward: forward == "works",
        ),
    ]


def truly_sparse() -> list[Claim]:
    """07: kernels, memory, the same walk, the race."""
    return [
        Claim(
            "order gains little",
            "The order alone gains little: without the second idea, the compiler cannot use it.",
            lambda v: (
                fastest(v.race, "sample by sample") / fastest(v.race, "row by row"),
                fastest(v.race, "row by row") / fastest(v.race, "with local variables"),
            ),
            lambda order, hoisted: order < hoisted and order < 3,
        ),
        Claim(
            "vector instructions",
            "only with the local variables does the compiler use the instructions that multiply several numbers",
            lambda v: tuple(v.packed_products(k) for k in (v.sample_by_sample, v.row_by_row, v.hoisted)),
            lambda samples, rows, hoisted: samples == rows == 0 < hoisted,
        ),
        Claim(
            "local variables gain",
            "Two local variables tell it otherwise.",
            lambda v: (fastest(v.race, "row by row") / fastest(v.race, "with local variables"),),
            lambda gain: gain > 1.5,
        ),
        Claim(
            "registers gain",
            "keep the sum in registers",
            lambda v: (fastest(v.race, "with local variables") / fastest(v.race, "library"),),
            lambda gain: gain > 1,
        ),
        Claim(
            "library beats dense",
            "How many times faster is a truly sparse step than a dense one?",
            lambda v: (fastest(v.race, "dense (torch)") / fastest(v.race, "library"), v.gain["dense"]),
            lambda layer, training: layer > 2 and training > 2,
        ),
        Claim(
            "no dense weight",
            "No dense weight, gradient or optimizer state, ever.",
            lambda v: tuple(float(v.memory.loc[n, "total bytes"]) for n in ("truly sparse", "dense", "masked")),
            lambda sparse, dense, masked: sparse < dense / 8 and masked > dense,
        ),
        Claim(
            "same function",
            "`sparsify` keeps the function",
            lambda v: (float(v.difference),),
            lambda difference: 0 <= difference < 1e-5,
        ),
        Claim(
            "one call",
            "One compiled call saves much of it",
            lambda v: (fastest(v.steps, "torch's loop"), fastest(v.steps, "one call")),
            lambda loop, call: 0 < call < loop,
        ),
        Claim(
            "same accuracy by epoch",
            "epoch by epoch they differ only in rounding, and on the clock",
            lambda v: tuple(v.histories[n].test_accuracy[0] for n in ("masked", "truly sparse")),
            lambda masked, sparse: abs(masked - sparse) < 3,
        ),
        Claim(
            "it learns",
            "with a fraction of the bytes and of the time",
            lambda v: (v.histories["truly sparse"].test_accuracy[-1], v.gain["dense"], v.gain["masked"]),
            lambda accuracy, dense, masked: accuracy > 94 and dense > 2 and masked > 2,
        ),
        Claim(
            "memory",
            "What holds only 5% of the weights needs a fraction of both",
            lambda v: (v.widest["truly sparse"], v.energy),
            lambda memory, energy: memory > 4 and energy > 2,
        ),
        Claim(
            "a mask saves no memory",
            "A mask saves nothing on either machine.",
            lambda v: (
                v.widest["masked"],
                *(v.on_gpu[v.on_gpu["network"] == n]["peak_bytes"].max() for n in ("Dense+Mask", "dense")),
            ),
            lambda cpu, masked, dense: cpu < 1 and masked > dense,
        ),
        Claim(
            "counting",
            "activations, and what the libraries need, come on top",
            lambda v: tuple(float(v.peak.loc[10_000, n] / v.counted.loc[10_000, n]) for n in ("dense", "truly sparse")),
            lambda dense, sparse: 1 <= dense < 1.5 and 1 <= sparse < 5,
        ),
        Claim(
            "wide layer",
            "20,000 × 20,000 inputs and outputs: as a dense float32 weight 1.6 GB",
            lambda v: (v.storage_bytes(v.wide), v.driver.rewirings, 4 * 20_000**2),
            lambda sparse, rewirings, dense: sparse < dense / 100 and rewirings == 2 and 1.5e9 < dense < 1.7e9,
        ),
    ]


def which_algorithm() -> list[Claim]:
    """08: the live race and the recorded one."""

    def recorded(v: SimpleNamespace, name: str, sparsity: float) -> float:
        rows = v.full[(v.full["contender"] == name) & (v.full["sparsity"] == sparsity)]
        return float(rows["accuracy"].iloc[0])

    def on_all(v: SimpleNamespace, name: str, sparsity: float) -> float:
        runs = v.decade[(v.decade["images"] == 60_000) & (v.decade["contender"] == name)]
        return float(runs[runs["sparsity"] == sparsity]["accuracy"].mean())

    def on_1000(v: SimpleNamespace, name: str, sparsity: float) -> float:
        rows = v.race[(v.race["images"] == 1000) & (v.race["contender"] == name) & (v.race["sparsity"] == sparsity)]
        return float(rows["accuracy"].mean())

    return [
        Claim(
            "by magnitude",
            "Most of them prune by [magnitude]",
            lambda v: (sum("magnitude" in m.prunes_by for m in v.METHODS), len(v.METHODS)),
            lambda by_magnitude, methods: methods / 2 < by_magnitude < methods,
        ),
        Claim(
            "same rules",
            "The library's own rules move the same connections",
            lambda v: (np.array(v.alike),),
            lambda alike: len(alike) == 2 and bool((alike == 1).all()),
        ),
        Claim(
            "equal weights",
            "Everything else is held equal: densities (ERK), first weights, how much is replaced and how often",
            lambda v: tuple(len(set(part["weights"])) for _, part in v.live.runs.groupby(["contender", "sparsity"])),
            lambda *kinds: set(kinds) == {1},
        ),
        Claim(
            "99% leaves",
            "At 99% sparsity 13,435 of 1.3 million weights are left.",
            lambda v: (float(v.live.runs.query("contender == 'static' and sparsity == 0.99")["weights"].iloc[0]),),
            lambda weights: weights == 13_435,
        ),
        Claim(
            "short runs",
            "three seeds of a short training say little",
            lambda v: (float((v.at_99["high"] - v.at_99["low"]).max()), float(np.ptp(v.at_99["accuracy"]))),
            lambda interval, spread: interval > 0.2 * spread > 0,
        ),
        Claim(
            "two settings",
            "many of them twice: with *common* settings, as above, and with their *own*",
            lambda v: tuple(sum(name.endswith(f", {which}") for name in v.entries) for which in ("common", "own")),
            lambda common, own: common >= 2 and own >= 2,
        ),
        Claim(
            "equal steps",
            "with the same network, optimizer, schedule and number of steps",
            lambda v: tuple(v.equal.groupby("images")["epochs"].nunique()),
            lambda *lengths: set(lengths) == {1},
        ),
        Claim(
            "nobody leads",
            "on 1,000 images no entry is first at every sparsity",
            lambda v: (len(set(v.ranked[1000].drop(columns="mean").idxmin())),),
            lambda firsts: 1 < firsts < 10,
        ),
        Claim(
            "before training",
            "Of those that keep each layer's number of weights (the race *methods*) SynFlow has it",
            lambda v: (
                on_1000(v, "SynFlow, common", 0.99),
                max(on_1000(v, name, 0.99) for name in v.entries if not name.startswith("SynFlow")),
            ),
            lambda synflow, others: 90 < others < synflow < 98,
        ),
        Claim(
            "with masks",
            "At 99% there GraNet, GMP and SNFS have the highest means",
            lambda v: (
                *(v.hard.loc[name, "points"] for name in ("GraNet, own", "GMP, own", "SNFS, own")),
                float(v.others["points"].max()),
            ),
            lambda *points: min(points[:3]) > points[3] > 0,
        ),
        Claim(
            "drawn weights",
            "it has a higher mean there with weights drawn for the sparse network than with the dense ones",
            lambda v: tuple(
                on_1000(v, f"{name}, {terms}", 0.99)
                for name in ("SynFlow", "SNIP", "GraSP")
                for terms in ("common", "own")
            ),
            lambda *means: 90 < min(means) and all(means[i] > means[i + 1] for i in (0, 2, 4)),
        ),
        Claim(
            "drawn weights, intervals",
            "paired by seed, lies above zero. (On all of MNIST these intervals hold zero.)",
            lambda v: tuple(
                v.paired_difference(v.equal[v.equal["images"] == n], f"{name}, common", f"{name}, own", 0.99)[end]
                for n, end in ((1000, 1), (60_000, 1), (60_000, 2))
                for name in ("SynFlow", "SNIP", "GraSP")
            ),
            lambda *ends: min(ends[:3]) > 0 and max(ends[3:6]) < 0 < min(ends[6:]),
        ),
        Claim(
            "shares",
            "gain as much by SynFlow's number of weights in each layer as RigL gains with ERK densities",
            lambda v: tuple(
                on_all(v, name, 0.99) for name in ("static", "static, SynFlow's shares", "RigL, common and own")
            ),
            lambda static, drawn, rigl: drawn - static > rigl - static > 0.2,
        ),
        Claim(
            "equal bytes",
            "No truly sparse entry holds twice the bytes of another; the slowest takes several times as long",
            lambda v: tuple(
                float(end(v.cost.loc[v.entries, column])) for column in ("MB", "ms a step") for end in (min, max)
            ),
            lambda fewest, most, fastest, slowest: most < 2 * fewest and slowest > 3 * fastest > 0,
        ),
        Claim(
            "a tenth of a point",
            "at 95% sparsity, on all of MNIST, the means of the growth rules differ by less than a tenth of a point",
            lambda v: tuple(recorded(v, n, 0.95) for n in ("SET", "RigL", "SNFS")),
            lambda *means: 0 < max(means) - min(means) < 0.1 and min(means) > 98,
        ),
        Claim(
            "hard to beat",
            "a topology that never moves is hard to beat",
            lambda v: (recorded(v, "static", 0.95), *(recorded(v, n, 0.95) for n in ("SET", "RigL", "SNFS"))),
            lambda static, *moving: static > max(moving) - 0.1,
        ),
        Claim(
            "static falls first",
            "From 99% on the static network falls behind first, random growth next",
            lambda v: tuple(recorded(v, n, 0.99) for n in ("static", "SET", "RigL")),
            lambda static, random, gradient: static < random < gradient,
        ),
        Claim(
            "two and a half points",
            "densities, initialisation and learning rate gain two and a half points",
            lambda v: (v.PUBLISHED_RESULTS["set_uniform"]["test_accuracy"], recorded(v, "RigL", 0.95)),
            lambda published, ours: 2.2 < ours - published < 2.8,
        ),
        Claim(
            "sparse is not small",
            "a dense network with as many weights has a lower mean than every rewired one at every sparsity",
            lambda v: tuple(
                recorded(v, n, s) - recorded(v, "small-dense, same weights", s)
                for n in ("SET", "RigL", "SNFS")
                for s in (0.9, 0.95, 0.98, 0.99, 0.995)
            ),
            lambda *ahead: min(ahead) > 0,
        ),
        Claim(
            "equal multiply-adds",
            "at 99.5% its mean is above those of all sparse ones of section 4",
            lambda v: tuple(
                recorded(v, n, 0.995) for n in ("small-dense, same multiply-adds", "static", "SET", "RigL", "SNFS")
            ),
            lambda small, *sparse: max(sparse) < small < 99.5,
        ),
        Claim(
            "gradual",
            "is among the best sparse networks wherever section 4's record has it",
            lambda v: tuple(
                recorded(v, "gradual pruning", s) - max(recorded(v, n, s) for n in ("SET", "RigL", "SNFS"))
                for s in sorted(set(v.full[v.full["contender"] == "gradual pruning"]["sparsity"]))
            ),
            lambda *ahead: min(ahead) > -0.1,
        ),
        Claim(
            "near the ceiling",
            "where accuracies are close together up to 98% sparsity",
            lambda v: tuple(
                float(np.ptp(v.decade.query("race == 'methods' and images == 60_000 and sparsity == @s")["accuracy"]))
                for s in (0.9, 0.95, 0.98, 0.995)
            ),
            lambda *spreads: max(spreads[:3]) < 0.6 and spreads[3] > 2,
        ),
    ]


def co_design() -> list[Claim]:
    """09: blocks in loops, in a layer, and in a network that stays or moves."""
    return [
        Claim(
            "blocks move less",
            "A block moves fewer rows, so its loop takes less time.",
            lambda v: tuple(fastest(v.race, f"loop, {which}") for which in ("single weights", "blocks 4×1")),
            lambda single, blocks: 0 < blocks < single,
        ),
        Claim(
            "blocks in the library",
            "The library's loops move still less",
            lambda v: tuple(fastest(v.race, n) for n in ("library, blocks 4×1", "library, single weights", "dense")),
            lambda blocks, single, dense: 0 < blocks < single < dense,
        ),
        Claim(
            "more than rows",
            "rows fall to a quarter and the time falls less",
            lambda v: tuple(fastest(v.race, f"library, {which}") for which in ("single weights", "blocks 4×1")),
            lambda single, blocks: 0 < blocks < single < 4 * blocks,
        ),
        Claim(
            "both directions",
            "Square blocks gain in both directions.",
            lambda v: tuple(fastest(v.step_times, n) for n in ("4×4", "1×1", "dense")),
            lambda square, single, dense: 0 < square < single < dense,
        ),
        Claim(
            "same blocks",
            "The library moves the same blocks.",
            lambda v: (np.array(v.equal),),
            lambda equal: len(equal) == 4 and bool((equal == 1).all()),
        ),
        Claim(
            "few weights left",
            "6,700 of 1.3 million weights are left",
            lambda v: tuple(
                sum(p.numel() for n, p in v.trained[(r, r), "RigL", 0].named_parameters() if n.endswith("values"))
                for r in (1, 4, 8)
            ),
            lambda *weights: all(6650 < n <= 6720 for n in weights),
        ),
        Claim(
            "static falls",
            "Static accuracy falls as blocks grow",
            lambda v: tuple(float(v.means.loc[size, "static"]) for size in (1, 16, 64)),
            lambda single, four, eight: 60 < single and eight < four < single - 10,
        ),
        Claim(
            "moving lifts",
            "moving the blocks lifts it again",
            lambda v: tuple(float(v.means.loc[64, how]) for how in ("RigL", "static")),
            lambda moving, static: 50 < moving < 100 and moving > static + 20,
        ),
        Claim(
            "harder structures gain more",
            "The harder the structure, the more moving is worth.",
            lambda v: tuple(float(v.means.loc[size, "gain"]) for size in (1, 16, 64)),
            lambda single, four, eight: single < four < eight < 90,
        ),
        Claim(
            "not everything",
            "at equal sparsity, single weights that move stay ahead",
            lambda v: tuple(float(v.means.loc[size, "RigL"]) for size in (1, 64)),
            lambda single, blocks: 50 < blocks < single,
        ),
        Claim(
            "most of it",
            "gives back most of it; the gain in points grows with the blocks.",
            lambda v: (
                float(v.means.loc[1, "RigL"] - v.means.loc[64, "static"]),
                *(float(v.means.loc[size, "gain"]) for size in (64, 16, 1)),
            ),
            lambda lost, eight, four, single: single < four < eight < lost and eight > lost / 2 > 0,
        ),
        Claim(
            "few on a path",
            "Most weights of static blocks lie on no path; rewiring moves blocks onto paths.",
            lambda v: tuple(
                float(v.paths[(v.paths["block"] == 64) & (v.paths["how"] == how)]["percent"].mean())
                for how in ("static", "RigL")
            ),
            lambda static, moving: 0 <= static < 50 and moving > static + 5,
        ),
        Claim(
            "single weights on a path",
            "For single weights the share on a path hardly changes",
            lambda v: tuple(
                float(v.paths[(v.paths["block"] == 1) & (v.paths["how"] == how)]["percent"].mean())
                for how in ("static", "RigL")
            ),
            lambda static, moving: 50 < static < 100 and abs(moving - static) < 8,
        ),
        Claim(
            "gpu wants large blocks",
            "blocks of 64×64 beat those of 16×16, and dense in the same precision",
            lambda v: tuple(
                float(v.on_gpu.loc[name, batch])
                for batch in v.on_gpu
                for name in ("blocks of 64×64, bfloat16", "blocks of 16×16, bfloat16", "dense bfloat16")
            ),
            lambda *us: all(us[i] < min(us[i + 1 : i + 3]) for i in range(0, len(us), 3)) and min(us) > 0,
        ),
        Claim(
            "from Python",
            "called from Python, they need 414 µs at batch 64 against 19 for dense",
            lambda v: tuple(
                float(np.median(v.load_result("bench_gpu")["layer ms"]["64"][name]))
                for name in ("blocks of 64×64, bfloat16", "dense bfloat16")
            ),
            lambda blocks, dense: round(1e3 * blocks) == 414 and round(1e3 * dense) == 19,
        ),
        Claim(
            "two of four",
            "2:4 pays only at batch 1024 here",
            lambda v: tuple(
                float(v.on_gpu.loc[name, f"batch {batch}"])
                for batch in (64, 1024)
                for name in ("2:4 (50% sparse), bfloat16", "dense bfloat16")
            ),
            lambda small, dense_small, large, dense_large: small > dense_small and large < dense_large,
        ),
    ]


CLAIMS: dict[str, list[Claim]] = {
    "01_paradox": paradox(),
    "02_masked_layers": masked_layers(),
    "03_dst_loop": dst_loop(),
    "04_mask_visualization": mask_pictures(),
    "05_simulated_vs_csr": fair_race(),
    "06_barriers": barriers(),
    "07_truly_sparse_training": truly_sparse(),
    "08_which_algorithm": which_algorithm(),
    "09_co_design": co_design(),
}


# Of the trainings that a reader compares, the variable that holds the history.
TRAININGS: dict[str, dict[str, Callable[[SimpleNamespace], Any]]] = {
    "03_dst_loop": {
        "dense, published recipe": lambda v: v.dense_history,
        "SET, uniform, published recipe": lambda v: v.sparse_history,
        "dense, one-cycle": lambda v: v.dense_cycle_history,
        "RigL, ERK, one-cycle": lambda v: v.rigl_history,
    },
    "04_mask_visualization": {
        "SET, uniform": lambda v: v.history,
        "RigL, ERK, one-cycle": lambda v: v.rigl_history,
    },
    "07_truly_sparse_training": {
        "SET, ERK, truly sparse": lambda v: v.histories["truly sparse"],
        "SET, ERK, masked, as many seconds": lambda v: v.histories["masked"],
        "dense, as many seconds": lambda v: v.histories["dense"],
    },
}


def accuracies(notebook: str, variables: dict[str, Any]) -> dict[str, float]:
    """Return the test accuracy after the last epoch, in percent, of the trainings of a notebook that has run."""
    v = SimpleNamespace(**variables)
    return {name: history(v).test_accuracy[-1] for name, history in TRAININGS.get(notebook, {}).items()}


def results(notebook: str, variables: dict[str, Any]) -> dict[str, str]:
    """Return, by claim, an empty text where it holds after a notebook has run, and what is wrong elsewhere.

    A claim is wrong if it does not hold for the notebook's variables, or if it would hold whatever they were: then it
    says nothing.
    """
    v, found = SimpleNamespace(**variables), {}
    for claim in CLAIMS[notebook]:
        values, wrong = claim.of(v), ""
        if not claim.holds(*values):
            wrong = f"does not hold for {values}: {claim.sentence!r}"
        elif not can_fail(claim, values):
            wrong = f"holds for all changes of {values}: it says nothing"
        found[claim.name] = wrong
    return found


def check(notebook: str, variables: dict[str, Any]) -> list[str]:
    """Return what is wrong with a notebook's claims after it has run, one line each."""
    return [f"{name}: {wrong}" for name, wrong in results(notebook, variables).items() if wrong]


def can_fail(claim: Claim, values: tuple[Any, ...]) -> bool:
    """Tell whether the claim does not hold for some change of its values."""
    return any(not claim.holds(*other) for other in changes(values))


def changes(values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return the values in other orders, and with one of them changed."""
    others = [values[::-1], values[1:] + values[:1]]
    for place, value in enumerate(values):
        for changed in _changed(value):
            others.append((*values[:place], changed, *values[place + 1 :]))
    return others


def _changed(value: Any) -> list[Any]:
    if isinstance(value, str):
        return ["", value + "?"]
    if isinstance(value, (list, tuple, np.ndarray)):
        numbers = np.asarray(value, dtype=np.float64)
        return [numbers * 0, -numbers, numbers[::-1] * 100 + 1]
    return [-value, 0 * value, 100 * value + 1, value / 100]
