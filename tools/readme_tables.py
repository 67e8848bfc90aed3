"""Write README's tables, the figures beside it and the notebooks' measured seconds from ``figures/*.json``.

    python -m tools.readme_tables

In README each table stands between ``<!-- NAME -->`` and ``<!-- end -->``; nothing else there is touched, and in a
notebook nothing but the seconds at its top. The tables of the decade's two pages are those of ``tools/decade_page.py``,
``tools/decade_results.py`` and ``tools/decade_claims.py``.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from tools import blocks_tables, decade_claims, decade_page, decade_results
from tools.blocks_tables import yes
from tutorial_lib import PUBLISHED_INFERENCE_MS, PUBLISHED_RESULTS, Benchmark, load_result, referee_plots, viz
from tutorial_lib.compare import Comparison, in_words, paired_difference
from tutorial_lib.project import FIGURES, ROOT

README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "instructor-guide.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "docs" / "results.md"
HELP = ROOT / "docs" / "help.md"
OWN_NETWORK = ROOT / "docs" / "your-own-network.md"
DECADE = ROOT / "docs" / "decade.md"
DECADE_RESULTS = ROOT / "docs" / "decade-results.md"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TO_RUN = re.compile(r"\d+ seconds to run \(measured: quick profile, two cores\)")
BREAK, QUESTIONS, START = "break", "questions", "start: `make lab`, clear outputs"
BARRIERS = "06, from its deck: the map and the takeaways"
NO_NOTEBOOK = (BREAK, QUESTIONS, START, BARRIERS)  # parts of a timetable in which nothing is run
# For each timetable and notebook: the minutes of talk, and the exercises that are done. The minutes of exercises are
# those that the notebooks name, the minutes of running are measured; what is left at the end is for questions.
ROUTES: dict[int, dict[str, tuple[int, tuple[int, ...]]]] = {
    45: {"01_paradox": (11, ()), "03_dst_loop": (10, (1,)), "07_truly_sparse_training": (12, ())},
    90: {START: (4, ()), "01_paradox": (9, (2,)), "02_masked_layers": (7, (1,)), "03_dst_loop": (14, (1,))}
    | {"05_simulated_vs_csr": (14, ()), BARRIERS: (5, ()), "07_truly_sparse_training": (13, ())},
    210: {"01_paradox": (14, (2,)), "02_masked_layers": (12, (1,)), "03_dst_loop": (19, (1, 3))}
    | {
        "04_mask_visualization": (11, (1,)),
        BREAK: (15, ()),
        "05_simulated_vs_csr": (12, (1,)),
        "06_barriers": (12, (1,)),
    }
    | {"07_truly_sparse_training": (16, (1,)), "08_which_algorithm": (9, (1,)), "09_co_design": (10, ())},
}
NOT_MEASURED = "not measured"
GRAPH = ", CUDA graph"  # how figures/bench_gpu.json names a captured row
VARIANTS = {
    "dense": "Dense",
    "set_uniform": "SET, uniform: Dense+Mask, the published recipe",
    "static_erk": "static, ERK: a random topology that never changes",
    "rigl_erk": "RigL, ERK",
}

# What the tests count as survived, and what they do for it.
SURVIVED = {
    "bad input": "wrong types, shapes, ranges, NaN and aliases into every public function: right, or a clear error",
    "fuzzing": "random layers, topologies, checkpoints and files: as the dense reference, or a clear error",
    "compiled code": "bounds checked, not compiled, 1 to many threads, child processes, interrupted",
    "long runs": "thousands of rewirings, losses that explode: exact, no growing memory, or a clear error",
    "data faults": "downloads that stall, are cut or have wrong bytes, full and read-only disks: digits instead",
    "odd machines": "no GPU, numba, display, home or write access; one core; plain locale; odd paths",
    "safety scans": "no file is unpickled, evaluated or shown unescaped; each scan finds an example that was put in",
}

OURS = "truly sparse (this project)"  # its name in figures/bench.json
COMPILED_NETWORK = "dense compiled"  # a row there
PRODUCTS = ("dense", "torch CSR", "ours")
UNFUSED = ("dense channels_last", "as it comes", "fused")
COMPILED = {
    "first result": "first result of a sparse layer",
    "notebooks": "what notebooks 05 and 07 use",
    "all": "all kernels",
}
# Which published row says the same as one of ours.
PUBLISHED_ROWS = {"Dense+Mask": "Dense+Mask (CPU)", "torch CSR": "Truly sparse CSR (CPU)"}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _range(summary: dict[str, float], digits: int) -> str:
    return f"{summary['mean']:.{digits}f} ({summary['low']:.{digits}f} to {summary['high']:.{digits}f})"


def results_table() -> str:
    """Return accuracy and loss of each measured recipe beside the published ones."""
    recorded = load_result("results")
    rows = []
    for key, label in VARIANTS.items():
        said = PUBLISHED_RESULTS.get(key, {})
        measured = recorded["variants"].get(key) if recorded else None
        if measured is None and not said:
            continue
        rows.append(
            [
                label,
                str(said.get("test_accuracy", "")),
                _range(measured["test_accuracy"], 2) if measured else NOT_MEASURED,
                str(said.get("test_loss", "")),
                _range(measured["test_loss"], 4) if measured else NOT_MEASURED,
            ]
        )
    return markdown(["network", "published accuracy %", "measured %", "published loss", "measured loss"], rows)


def inference_table() -> str:
    """Return milliseconds of the whole network on 100 images, per format."""
    recorded = load_result("inference")
    if recorded is None:
        return markdown(["network", "median ms"], [["all rows", NOT_MEASURED]])
    rows = []
    for name, runs in recorded["runs_ms"].items():
        said = PUBLISHED_INFERENCE_MS.get(PUBLISHED_ROWS.get(name, ""), "")
        rows.append([name, str(said), *_median_and_quartiles(runs)])
    on_gpu = load_result("bench_gpu")
    for name, ours in (("Dense+Mask (GPU)", "Dense+Mask"), ("Truly sparse CSR (GPU)", "CSR linear layers")):
        measured = [NOT_MEASURED, ""] if on_gpu is None else _median_and_quartiles(on_gpu["ms"][ours])
        rows.append([name, str(PUBLISHED_INFERENCE_MS[name]), *measured])
    header = [
        f"whole network, 100 images (on the CPU: {recorded['threads']} threads)",
        "published ms",
        "median ms",
        "quartiles",
    ]
    return markdown(header, rows)


def _median_and_quartiles(milliseconds: list[float], digits: int = 2) -> list[str]:
    low, median, high = np.percentile(milliseconds, (25, 50, 75))
    return [f"{median:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"]


def gpu_network_table() -> str:
    """Return milliseconds of the tutorial's network on a GPU, by format, called from Python and as a CUDA graph."""
    called, graphed = _with_and_without_graph(load_result("bench_gpu")["ms"])
    rows = [
        [name, *_median_and_quartiles(runs, 3), *_median_and_quartiles(graphed[name], 3)]
        for name, runs in called.items()
    ]
    return markdown(["the network, 100 images, ms", "called", "quartiles", "CUDA graph", "quartiles"], rows)


def gpu_layer_table() -> str:
    """Return microseconds of one layer's product on a GPU as a CUDA graph, by format and batch."""
    by_batch = {batch: _with_and_without_graph(rows) for batch, rows in load_result("bench_gpu")["layer ms"].items()}
    batches, names = list(by_batch), list(next(iter(by_batch.values()))[0])
    rows = []
    for name in names:
        medians = [[1e3 * float(np.median(times[name])) for times in by_batch[batch]] for batch in batches]
        rows.append([name, *(f"{us:.1f}" for called, graph in medians for us in (graph, called))])
    columns = [f"batch {batch}{of}" for batch in batches for of in ("", ", from Python")]
    return markdown(["4096² layer, 95% sparse, µs", *columns], rows)


def gpu_training_table() -> str:
    """Return peak memory and energy of training on a GPU, dense and masked."""
    rows = []
    for row in load_result("bench_gpu")["training"]:
        joules = [of["joules"] for of in (row["step"], row["inference"])]
        energy = (
            [NOT_MEASURED] * 2 if None in joules else [f"{joules[0]:.2f}", f"{10_000 / row['batch'] * joules[1]:.0f}"]
        )
        milliseconds = f"{1e3 * row['step']['seconds']:.2f}"
        rows.append([f"{row['hidden']:,}", row["network"], f"{row['peak_bytes'] / 2**20:,.0f}", milliseconds, *energy])
    header = ["hidden neurons", "network", "peak MiB", "ms a step", "joules a step", "joules for 10,000 images"]
    return markdown(header, rows)


def footprint_table() -> str:
    """Return peak memory and energy of training on a CPU, each network in a process of its own."""
    recorded, rows, measured = load_result("footprint"), [], True
    for row in recorded["rows"]:
        joules = [of["joules"] for of in (row["step"], row["inference"])]
        if None in joules:
            measured = False
            joules = [recorded["watts_per_core"] * of["cpu_seconds"] for of in (row["step"], row["inference"])]
        sizes = [f"{row[key] / 2**20:,.0f}" for key in ("peak_bytes", "predicted_bytes")]
        energy = [f"{j:,.0f}" if j >= 10 else f"{j:.2g}" for j in (joules[0], 10_000 / recorded["batch"] * joules[1])]
        rows.append([f"{row['hidden']:,}", row["network"], *sizes, f"{1e3 * row['step']['seconds']:.2f}", *energy])
    how = "measured" if measured else f"estimate: CPU seconds × {recorded['watts_per_core']:.0f} W"
    header = ["hidden neurons", "network", "peak MiB", "counted MiB", "ms a step", f"joules a step ({how})"]
    return markdown([*header, "joules for 10,000 images (the same)"], rows)


def gpu_name() -> str:
    """Return which GPU the rows were measured on."""
    machine = json.loads((FIGURES / "bench_gpu.json").read_text(encoding="utf-8"))["provenance"]
    return f"*{machine['gpu']}, torch {machine['packages']['torch']}, `{machine['command']}`.*"


def _with_and_without_graph(rows: dict[str, list[float]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    graphed = {name.removesuffix(GRAPH): runs for name, runs in rows.items() if name.endswith(GRAPH)}
    return {name: runs for name, runs in rows.items() if name in graphed}, graphed


def answer_table() -> str:
    """Return what truly sparse layers gain, each line from one interleaved run, beside what was aimed at."""
    recorded = load_result("bench")
    rows = [
        [
            _with_accuracies(row["work"], recorded),
            f"{row['measured']:.3g}",
            row["to reach"],
            yes(row["reached"]),
        ]
        for row in (recorded["targets"] if recorded else [])
    ]
    return markdown(
        ["95% sparse, 2 CPU threads", "measured", "aimed at", "reached"], rows or [["all", NOT_MEASURED, "", ""]]
    )


def _with_accuracies(work: str, recorded: dict[str, Any]) -> str:
    """Return the name of a row; that of the whole training says what accuracy its speed comes with."""
    if not work.startswith("training, 10 epochs"):
        return work
    sparse, dense = (recorded["whole_training"][f"{name}, accuracy %"] for name in (OURS, "dense"))
    return f"{work} (SET, uniform: {sparse:.2f}% against {dense:.2f}%)"


def overheads_table() -> str:
    """Return what surrounds the arithmetic beside what was aimed at."""
    rows = [
        [row["work"], f"{row['measured']:.3g}", row["to reach"], yes(row["reached"])] for row in _overheads("targets")
    ]
    return markdown(["95% sparse, 2 CPU threads", "measured", "aimed at", "reached"], rows)


def products_table() -> str:
    """Return microseconds of the bare product by size and batch: dense / torch CSR / this project."""
    table = pd.DataFrame(_overheads("products"), columns=["size", "batch", *PRODUCTS])
    rows = []
    for size, part in table.groupby("size"):
        rows.append([f"{size}²", *(" / ".join(f"{row[n]:.0f}" for n in PRODUCTS) for row in part.to_dict("records"))])
    batches = sorted(set(table["batch"]))
    return markdown(["µs: dense / torch CSR / ours", *(f"batch {batch}" for batch in batches)], rows)


def calls_table() -> str:
    """Return microseconds of a small layer's call beside torch's own layer."""
    rows = [[name, f"{of['torch']:.1f}", f"{of['ours']:.1f}"] for name, of in dict(_overheads("calls")).items()]
    return markdown(["a small layer, µs a call", "torch's dense layer", "ours"], rows)


def path_table() -> str:
    """Return microseconds of each part of a call."""
    rows = [[name, f"{us:.2f}"] for name, us in dict(_overheads("call_path")).items()]
    return markdown(["SparseLinear(64, 64), 8 samples, no gradients", "µs"], rows)


def rewirings_table() -> str:
    """Return milliseconds of the steps around a rewiring."""
    columns = ("plain step", "step before", "rewiring", "step after", "costs")
    rows = [[name, *(f"{of[column]:.2f}" for column in columns)] for name, of in dict(_overheads("rewirings")).items()]
    return markdown(["growth rule, ms", *columns[:-1], "costs in all"], rows)


def unfused_table() -> str:
    """Return milliseconds of the tutorial's CNN as ``sparsify`` leaves it."""
    rows = [[work, *(f"{of[name]:.2f}" for name in UNFUSED)] for work, of in dict(_overheads("unfused")).items()]
    return markdown(["the tutorial's CNN, ERK, ms", *UNFUSED], rows)


def shares_table() -> str:
    """Return the largest shares of a training step of the network as it comes."""
    rows = [[name, f"{share:.0%}"] for name, share in dict(_overheads("shares")).items()]
    return markdown(["`torch.profiler`, the training step as it comes", "share"], rows)


def trainings_table() -> str:
    """Return the seconds of whole trainings, static and rewired."""
    rows = [[name, ", ".join(f"{s:.1f}" for s in times)] for name, times in dict(_overheads("trainings")).items()]
    return markdown(["the tutorial's CNN, ERK, 10 epochs, rewired every 100 steps", "seconds, each run"], rows)


def compile_table() -> str:
    """Return seconds of compilation from an empty cache."""
    rows = [[COMPILED[name], f"{seconds:.1f}"] for name, seconds in dict(_overheads("first_compile")).items()]
    return markdown(["from an empty cache", "seconds"], rows)


def structures_table() -> str:
    """Return how many times faster than dense one layer is in each structure, and the arithmetic rates."""
    recorded = load_result("structures")
    if recorded is None:
        return markdown(["one layer, 95% sparse", "× dense"], [["all", NOT_MEASURED]])
    names = list(dict.fromkeys(name for row in recorded["rows"].values() for name in row))
    rows = [
        [work, *(f"{of[n]['× dense']:.1f} ({of[n]['GFLOP/s']:.0f})" if n in of else "" for n in names)]
        for work, of in recorded["rows"].items()
    ]
    return markdown(["one layer, 95% sparse: × dense (GFLOP/s)", *names], rows)


def bound_table() -> str:
    """Return what each pass of a layer loads, stores and computes, the time that this needs, and the time measured."""
    recorded = load_result("bound")
    header = [
        "one layer, 95% sparse",
        "pass",
        "kB loaded",
        "kB stored",
        "Mflop",
        "bound µs",
        "by",
        "measured µs",
        "reached",
    ]
    if recorded is None:
        return markdown(header, [["all", NOT_MEASURED, *[""] * 7]])
    amounts = "kB loaded", "kB stored", "Mflop", "bound µs"
    rows = [
        [layer, name, *(f"{of[a]:,.0f}" for a in amounts), of["bound by"], f"{of['µs']:.0f}", f"{of['share']:.0%}"]
        for layer, passes in recorded["rows"].items()
        for name, of in passes.items()
    ]
    return markdown(header, rows)


def structured_networks_table() -> str:
    """Return the times of the tutorial's CNN in each structure, beside masked and dense."""
    recorded = load_result("structures")
    if recorded is None or "networks" not in recorded:
        return markdown(["the tutorial's CNN, 95% sparse", "ms"], [["all", NOT_MEASURED]])
    names = list(next(iter(recorded["networks"].values())))
    rows = [
        [name, *(f"{n['fastest µs'] / 1e3:.2f} ({n['× masked']:.1f} / {n['× dense']:.1f})" for n in of.values())]
        for name, of in recorded["networks"].items()
    ]
    return markdown(["the tutorial's CNN, 95% sparse: ms (× masked / × dense)", *names], rows)


def _overheads(name: str) -> Any:
    recorded = load_result("bench_overheads")
    return recorded[name] if recorded else []


def speed_words() -> str:
    """Return what truly sparse layers gain on the tutorial's network, in a sentence."""
    measured = {row["work"]: row["measured"] for row in load_result("bench")["targets"]}
    step, infer = (
        sorted(measured[f"{work}, {scheme}: faster than fastest dense"] for scheme in ("uniform", "erk"))
        for work in ("training step, batch 64", "inference, 100 images")
    )
    compiled = dict(_overheads("first_compile"))
    return (
        f"On this network and {_machine('bench')}, layers that hold only 5% take a training step {step[0]:.3g} to "
        f"{step[1]:.3g} times faster\nthan the fastest dense PyTorch we could set up, infer {infer[0]:.3g} to "
        f"{infer[1]:.3g} times faster, and take "
        f"{measured['bytes of weights, gradients, Adam, indices: fewer than dense']:.3g} times fewer bytes.\n"
        "On paper, 20 times would be possible. `make bench`, one interleaved run, medians, outputs checked equal. Once "
        f"on a machine,\nkernels are compiled: the first sparse layer takes {compiled['first result']:.1f} s, all that "
        f"notebooks 05 and 07 use {compiled['notebooks']:.0f} s."
    )


def limits_words() -> str:
    """Return what limits the rows of ``make bench``, from the recorded numbers."""
    bench, trained = load_result("bench"), load_result("bench")["whole_training"]
    rates = {row: sorted(of[row] for of in bench["gflops"].values()) for row in ("dense", OURS)}
    forward = np.median(bench["seconds"]["fc 1000×1000, batch 64, forward"][OURS])
    found = viz.break_evens(load_result("bench_crossover")["milliseconds"], OURS)
    large, at_256 = found[found.index.get_level_values("width") >= 1000], found.loc[256, OURS]
    small = ", ".join(f"{'never' if np.isnan(at) else f'from {at:.0%} on'} (batch {b})" for b, at in at_256.items())
    gflops = [f"{rates[row][0]:.0f} to {rates[row][1]:.0f}" for row in ("dense", OURS)]
    lines = [
        f"*{_machine('bench')}, `make bench`; the 200,000² layer ran in its own process. The whole training is SET "
        f"with uniform densities, fast but less accurate: {trained[f'{OURS}, accuracy %']:.2f}% in {trained[OURS]:.1f} "
        f"s. Dense has {trained['dense, accuracy %']:.2f}% in {trained['dense']:.0f} s.*",
        f"A single 1000×1000 layer, with the call from Python, reaches {gflops[0]} GFLOP/s if it is dense, and "
        f"{gflops[1]} in this project (over both passes, and over the forward pass; multiplications by zero do not "
        "count). Each weight must read a row of the input; these reads alone take "
        f"{1e6 * bench['seconds_to_read']:.0f} of the {1e6 * forward:.0f} µs of a forward pass "
        "(`benchmarks/bound.py`). The first time is the median of a loop that only reads, the second the median of "
        "calls through the layer, both from `make bench`. The table of bounds in "
        "[benchmarks](benchmarks.md#blocks) is from another run, and has the fastest of many calls of the compiled "
        "pass, without the layer around it.",
        "From which sparsity on a sparse layer is faster than a dense one depends on its size. For 1000×1000 and "
        f"larger, both passes together, this project is faster from {_span(large[OURS])} sparsity on, torch's CSR from "
        f"{_span(large['torch CSR'])} on. For 256×256, this project is faster {small}.",
    ]
    return "\n\n".join(lines)


def repeats_words() -> str:
    """Return how many times faster than dense three programs found one piece of work, and how they differ."""
    bench, notebook, structures = (load_result(name) for name in ("bench", "inference", "structures"))
    if None in (bench, notebook, structures):
        return NOT_MEASURED
    work = "inference, 100 images, uniform"
    medians = {name: float(np.median(runs)) for name, runs in bench["seconds"][work].items()}
    eager = min(of for name, of in medians.items() if name.startswith("dense") and name != COMPILED_NETWORK)
    compiled = (
        "Notebook 05 does not race a dense network that `torch.compile` compiled; against the others `make bench` has "
        f"{eager / medians[OURS]:.3g}. What else makes them differ"
        if COMPILED_NETWORK in medians
        else "Why they differ"
    )
    in_notebook = {name: float(np.median(runs)) for name, runs in notebook["runs_ms"].items()}
    dense = min(in_notebook[name] for name in ("Dense+Mask, folded (= Dense)", "Dense, channels_last"))
    factors = [
        next(row["measured"] for row in bench["targets"] if row["work"] == f"{work}: faster than fastest dense"),
        dense / in_notebook["truly sparse"],
        structures["networks"]["uniform, inference of 100 images"]["1×1"]["× dense"],
    ]
    return (
        "Three programs measured inference of 100 images with uniform densities at 95% sparsity. By `make bench` it is "
        f"{factors[0]:.3g} times faster than the fastest dense network, by notebook 05 {factors[1]:.3g} times, and by "
        f"`benchmarks/structures.py` {factors[2]:.3g} times. The last takes the fastest of many calls, the others take "
        f"medians. {compiled} was not measured: take the smallest, {min(factors):.3g}."
    )


def blocks_answer() -> str:
    """Return the guide's answer to what blocks gain and cost, from the recorded numbers."""
    recorded, runs = load_result("structures"), blocks_tables.study(60_000)
    layers = {size: recorded["rows"][f"linear {size}, batch 64, forward"] for size in (1000, 4096)}
    times = {size: [f"{layers[size][name]['× dense']:.1f}" for name in ("4×4", "1×1")] for size in layers}
    step = recorded["networks"]["erk, step of 64 images"]
    ms = {name: f"{step[name]['fastest µs'] / 1e3:.2f}" for name in ("1×1", "4×4", "auto")}
    means = runs[runs["sparsity"] == 0.995].groupby(["how", "structure"])["accuracy"].mean()
    static, moved = ({name: f"{mean:.2f}%" for name, mean in means[how].items()} for how in ("static", "RigL"))
    return (
        "**11. And blocks?** In layers of 1000×1000 and larger they make a pass faster, because the weights of a block "
        "share the rows that they read: a forward pass of 64 samples in 4×4 is "
        f"{times[1000][0]} times faster than dense, with single weights {times[1000][1]} times; at 4096×4096 "
        f"{times[4096][0]} and {times[4096][1]} times. In the tutorial's small network one structure for all layers "
        "gains less in a training step than in one layer, and `auto`, which takes each layer's from a table, is among "
        "the fastest: "
        f"single weights (ERK, 95%) take {ms['1×1']} ms, 4×4 {ms['4×4']} ms, `auto` {ms['auto']} ms "
        "([benchmarks](benchmarks.md#blocks)).\n\n"
        "Where few weights are left, blocks that stay as they were drawn lose accuracy. How much depends on the block: "
        f"at 99.5% sparsity 4×1 has {static['4×1']}, 4×4 {static['4×4']} and 8×8 {static['8×8']}; single weights have "
        f"{static['1×1']}. RigL moves whole blocks by the same rule. It gives most of the loss back, {moved['4×4']} in "
        f"4×4, but single weights that move stay ahead with {moved['1×1']} (notebook 09, sections 1, 2 and 4)."
    )


def _machine(name: str) -> str:
    origin = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))["provenance"]
    return f"{origin['torch_threads']} threads of an {origin['cpu']}"


def _span(shares: pd.Series) -> str:
    return f"{shares.min():.0%} to {shares.max():.0%}"


def times_table() -> str:
    """Return the seconds that each notebook runs in the quick profile."""
    recorded = load_result("notebook_times")
    seconds = recorded["seconds"] if recorded else {}
    rows = [
        [f"[{p.stem}](notebooks/{p.name})", question, f"{seconds[p.stem]:.0f}" if p.stem in seconds else NOT_MEASURED]
        for p, question in (
            (p, _question(p.read_text(encoding="utf-8"))) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))
        )
    ]
    return markdown(["notebook", "the question that it answers", "seconds (quick)"], rows)


def exercises_of(name: str) -> dict[int, tuple[str, int]]:
    """Return title and minutes of each exercise of a notebook, by its number."""
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    found = re.findall(r'"### Exercise (\d+): (.+?)\\n",\s+"\\n",\s+"\*(?:Easy|Medium|Hard), (\d+) minutes', text)
    return {int(number): (title, int(minutes)) for number, title, minutes in found}


def timetable(minutes: int) -> list[tuple[str, int, tuple[int, ...], int]]:
    """Return name, minutes of talk, minutes of each exercise and whole minutes of running of each part of a route.

    The last part is what is left for questions: all parts together take exactly ``minutes``.
    """
    seconds = load_result("notebook_times")["seconds"]
    parts = []
    for name, (talk, numbers) in ROUTES[minutes].items():
        exercises = tuple(exercises_of(name)[number][1] for number in numbers)
        parts.append((name, talk, exercises, math.ceil(seconds[name] / 60) if name in seconds else 0))
    rest = minutes - sum(talk + sum(exercises) + running for _, talk, exercises, running in parts)
    return [*parts, (QUESTIONS, rest, (), 0)]


def route_table(minutes: int) -> str:
    """Return a timetable: when each part begins and ends, and what its minutes are spent on."""
    rows, mark = [], 0
    for name, talk, exercises, running in timetable(minutes):
        end = mark + talk + sum(exercises) + running
        numbers = ROUTES[minutes].get(name, (0, ()))[1]
        done = ", ".join(f"exercise {n}: {m}" for n, m in zip(numbers, exercises, strict=True))
        link = name if name in NO_NOTEBOOK else f"[{name}](../notebooks/{name}.ipynb)"
        rows.append([f"{mark} to {end}", link, str(talk), done, str(running or "")])
        mark = end
    return markdown(["minute", "notebook", "talk", "exercises", "running"], rows)


def _question(notebook: str) -> str:
    """Return the bold one-line question under a notebook's title."""
    return re.search(r'"\*\*(.+?)\*\*', notebook).group(1)


def referee_tables() -> dict[str, pd.DataFrame]:
    """Return the recorded races as tables of means and intervals; empty where nobody has measured them."""
    recorded = load_result("referee")
    runs = recorded["runs"] if recorded else {}
    return {name: Comparison(pd.DataFrame(columns)).table() for name, columns in runs.items()}


def referee_table() -> str:
    """Return mean accuracy and 95% interval per contender and sparsity."""
    tables = referee_tables()
    if not tables:
        return markdown(["recipe", "accuracy %"], [["all rows", NOT_MEASURED]])
    table = pd.concat([tables["grid"], tables["gradual"]])
    sparsities = sorted(set(table["sparsity"]) - {0.0})
    rows = []
    for contender, part in table.groupby("contender", sort=False):
        cells = {row.sparsity: in_words(row.accuracy, row.low, row.high) for row in part.itertuples()}
        rows.append([contender, *(cells.get(sparsity, cells.get(0.0, "")) for sparsity in sparsities)])
    return markdown(["accuracy % at sparsity", *(f"{100 * sparsity:g}%" for sparsity in sparsities)], rows)


def aims_table() -> str:
    """Return the best truly sparse result at 95, 98 and 99% beside what was aimed at."""
    recorded = load_result("referee")
    header = ["truly sparse, best mean of all that were tried", "measured, with 95% interval", "aimed at", "reached"]
    if recorded is None:
        return markdown(header, [["all", NOT_MEASURED, "", ""]])
    runs = pd.concat([pd.DataFrame(recorded["runs"][race]) for race in ("grid", "waterfall", "tried")])
    runs = runs.drop_duplicates(["contender", "sparsity", "seed"])  # the waterfall ends at one of those tried
    table = Comparison(runs[~runs["contender"].str.contains("dense$|small-dense", regex=True)]).table()
    best = {sparsity: part.loc[part["accuracy"].idxmax()] for sparsity, part in table.groupby("sparsity")}
    below = paired_difference(runs, best[0.95].contender, "dense", 0.95)
    rows = [
        [
            f"95%: {best[0.95].contender}, points above dense",
            in_words(*below),
            "≥ −0.05",
            yes(below[0] >= -0.05),
        ],
    ]
    for sparsity, aim in ((0.98, 98.9), (0.99, 98.5)):
        row = best[sparsity]
        accuracy = in_words(row.accuracy, row.low, row.high)
        rows.append(
            [
                f"{sparsity:.0%}: {row.contender}, accuracy %",
                accuracy,
                f"≥ {aim}",
                yes(row.accuracy >= aim),
            ]
        )
    return markdown(header, rows)


def survived_table() -> str:
    """Return how many cases of each class the library survived, as its tests counted them."""
    recorded = load_result("reliability")
    cases = recorded["cases"] if recorded else {}
    rows = [[name, f"{cases[name]:,}" if name in cases else NOT_MEASURED, what] for name, what in SURVIVED.items()]
    return markdown(["class", "cases", "what is done"], rows)


def zoo_table() -> str:
    """Return, for each network of the model zoos, what its tests found."""
    recorded = load_result("zoo")
    header = ["network", "package", "sparse layers", "weights", "of these in sparse layers %"]
    if recorded is None:
        return markdown(header, [["all", NOT_MEASURED, "", "", ""]])
    rows = [
        [
            name,
            f"{row['package']} {recorded['versions'][row['package']]}",
            str(row["layers"]),
            f"{row['weights']:,}",
            f"{100 * row['covered'] / row['weights']:.1f}",
        ]
        for name, row in recorded["networks"].items()
    ]
    return markdown(header, rows)


def _table(table: Callable[..., decade_page.Table], *arguments: Any) -> str:
    return markdown(*table(*arguments))


TABLES: dict[str, Callable[[], str]] = {
    "answer": answer_table,
    "results": results_table,
    "notebooks": times_table,
    "speed": speed_words,
}
RESULTS_TABLES: dict[str, Callable[[], str]] = {
    "referee": referee_table,
    "aims": aims_table,
    "inference": inference_table,
    "limits": limits_words,
    "repeats": repeats_words,
}
HELP_TABLES: dict[str, Callable[[], str]] = {"survived": survived_table}

OWN_NETWORK_TABLES: dict[str, Callable[[], str]] = {"zoo": zoo_table}
DECADE_TABLES: dict[str, Callable[[], str]] = {
    "methods": functools.partial(_table, decade_page.methods_table),
    "claims": functools.partial(_table, decade_page.claims_table),
    "ranks": decade_results.picture_words,
} | {
    f"equal terms, {task}": functools.partial(_table, decade_results.equal_terms_table, images)
    for images, task in decade_results.TASKS.items()
}
DECADE_RESULTS_TABLES: dict[str, Callable[[], str]] = {
    "friedman": decade_results.friedman_words,
    "own settings": functools.partial(_table, decade_results.own_settings_table),
    "tried": lambda: _table(decade_claims.tried_table, decade_results.recorded()),
    "cost": functools.partial(_table, decade_results.cost_table),
} | {
    f"{name}, {task}": functools.partial(_table, table, images)
    for name, table in (
        ("accuracies", decade_results.accuracies_table),
        ("differences", decade_results.differences_table),
    )
    for images, task in decade_results.TASKS.items()
}

BENCHMARK_TABLES: dict[str, Callable[[], str]] = {
    "overheads": overheads_table,
    "products": products_table,
    "calls": calls_table,
    "path": path_table,
    "rewirings": rewirings_table,
    "unfused": unfused_table,
    "shares": shares_table,
    "trainings": trainings_table,
    "compile": compile_table,
    "structures": structures_table,
    "bound": bound_table,
    "structured networks": structured_networks_table,
    "speeds of blocks": functools.partial(_table, blocks_tables.speeds_table),
    "convolution": blocks_tables.convolution_words,
    "diagonals": functools.partial(_table, blocks_tables.diagonals_table),
    "front": blocks_tables.front_words,
    "aims of blocks": functools.partial(_table, blocks_tables.aims_table),
    **{
        f"co-design, {name}": functools.partial(_table, blocks_tables.accuracies_table, images)
        for images, name in blocks_tables.TASKS.items()
    },
    **{
        f"gains, {name}": functools.partial(_table, blocks_tables.gains_table, images)
        for images, name in blocks_tables.TASKS.items()
    },
    "footprint": footprint_table,
    "gpu": gpu_name,
    "gpu network": gpu_network_table,
    "gpu layer": gpu_layer_table,
    "gpu training": gpu_training_table,
}

GUIDE_TABLES: dict[str, Callable[[], str]] = {
    f"route {minutes}": functools.partial(route_table, minutes) for minutes in ROUTES
} | {"blocks": blocks_answer}


DOCUMENTS = {
    README: TABLES,
    RESULTS: RESULTS_TABLES,
    BENCHMARKS: BENCHMARK_TABLES,
    HELP: HELP_TABLES,
    OWN_NETWORK: OWN_NETWORK_TABLES,
    DECADE: DECADE_TABLES,
    DECADE_RESULTS: DECADE_RESULTS_TABLES,
    GUIDE: GUIDE_TABLES,
}


def render(text: str, tables: dict[str, Callable[[], str]] = TABLES) -> str:
    """Return README's text, or another's with its tables, with every table made anew."""
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n)((?!<!-- end -->).)*(<!-- end -->)"
        text, found = re.subn(pattern, lambda m, t=table: f"{m[1]}{t()}\n{m[3]}", text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"there are {found} places for the table {name!r}; exactly one is needed")
    return text


def save_drawn(name: str, table: pd.DataFrame, source: str = "referee") -> None:
    """Write what a figure shows of ``figures/SOURCE.json`` beside it, with that file's provenance."""
    origin = json.loads((ROOT / "figures" / f"{source}.json").read_text(encoding="utf-8"))["provenance"]
    drawn = {"values": json.loads(table.to_json(orient="records")), "provenance": origin}
    (FIGURES / f"{name}.json").write_text(json.dumps(drawn, indent=1) + "\n", encoding="utf-8")


def plot_accuracies(measured: Mapping[str, Mapping[str, float]], published: Mapping[str, float]) -> Figure:
    """Draw mean test accuracies (percent) with their range, and the published ones that there are beside them."""
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.45 * len(measured)), layout="constrained")
    for place, (name, accuracy) in enumerate(measured.items()):
        first = place == 0
        label = "measured here: mean and range" if first else None
        axis.plot([accuracy["low"], accuracy["high"]], [place, place], color=viz.BLUE, linewidth=3)
        axis.plot(accuracy["mean"], place, "o", color=viz.BLUE, markersize=8, label=label)
        if name in published:
            label = "published" if first else None
            axis.plot(published[name], place, "x", color=viz.ORANGE, markersize=10, label=label)
    axis.set(yticks=range(len(measured)), yticklabels=list(measured), xlabel="test accuracy (%)")
    axis.grid(axis="x", alpha=0.4)
    axis.margins(y=0.15)
    axis.invert_yaxis()
    axis.legend(loc="lower left")
    sns.despine(figure)
    return viz.finish(figure)


def draw_figures() -> None:
    """Draw the figures from the recorded numbers."""
    recorded = load_result("results")
    if recorded:
        measured = {VARIANTS[key]: row["test_accuracy"] for key, row in recorded["variants"].items()}
        said = {VARIANTS[key]: row["test_accuracy"] for key, row in PUBLISHED_RESULTS.items()}
        plot_accuracies(measured, said).savefig(FIGURES / "results.png", dpi=110)
    recorded = load_result("bench")
    if recorded:
        name = "training step, batch 64, uniform"
        figure = viz.plot_benchmark(
            Benchmark(recorded["seconds"][name], threads=2, device="CPU"),
            "One training step of the whole network, batch 64, 95% sparse",
        )
        figure.savefig(FIGURES / "bench.png", dpi=110)
    recorded = load_result("bench_crossover")
    if recorded:
        viz.plot_crossover(recorded["milliseconds"], ours=OURS).savefig(FIGURES / "bench_crossover.png", dpi=110)
    tables = referee_tables()
    if tables:
        everything = pd.concat([tables["grid"], tables["gradual"]])
        referee_plots.plot_referee(everything).savefig(FIGURES / "referee.png", dpi=110)
        referee_plots.plot_tradeoff(everything).savefig(FIGURES / "referee_tradeoff.png", dpi=110)
        said = PUBLISHED_RESULTS["set_uniform"]["test_accuracy"]
        referee_plots.plot_waterfall(tables["waterfall"], said).savefig(FIGURES / "referee_waterfall.png", dpi=110)
        save_drawn("referee_tradeoff", everything)
        save_drawn("referee_waterfall", tables["waterfall"])
    table = decade_results.drawn_ranks()
    if len(table):
        decade_results.plot_ranks().savefig(FIGURES / "decade_ranks.png", dpi=110)
        save_drawn("decade_ranks", table, source="decade_runs")
    recorded = load_result("inference")
    if recorded:
        seconds = {name: [1e-3 * ms for ms in runs] for name, runs in recorded["runs_ms"].items()}
        figure = viz.plot_benchmark(
            Benchmark(seconds, threads=recorded["threads"], device="CPU"), "The whole network, 100 images, 95% sparse"
        )
        figure.savefig(FIGURES / "inference.png", dpi=110)


def with_seconds(notebook: str, seconds: float) -> str:
    """Return a notebook's file with its measured seconds at the top.

    Raises:
        ValueError: it does not have one place for them.
    """
    text, places = TO_RUN.subn(f"{seconds:.0f} seconds to run (measured: quick profile, two cores)", notebook)
    if places != 1:
        raise ValueError(f"{places} places for the seconds to run; one is needed")
    return text


def main() -> None:
    """Rewrite README, the guide, the benchmarks, the notebooks' seconds and the figures."""
    for path, tables in DOCUMENTS.items():
        path.write_text(render(path.read_text(encoding="utf-8"), tables), encoding="utf-8")
    seconds = load_result("notebook_times")["seconds"]
    for path in NOTEBOOKS:
        path.write_text(with_seconds(path.read_text(encoding="utf-8"), seconds[path.stem]), encoding="utf-8")
    draw_figures()


if __name__ == "__main__":
    main()
