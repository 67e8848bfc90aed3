"""Plots: the drawn values are the given values, and no figure stays open."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from truly_sparse import InvalidArgumentError, layer_nnz
from tutorial_lib import History, benchmark, referee_plots, viz

MASKS = [np.random.default_rng(seed).random((4, 30)) < 0.3 for seed in range(3)]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    plt.close("all")  # those of other tests
    yield
    assert plt.get_fignums() == []


def test_states_by_hand():
    before, after = np.array([True, False, True, False]), np.array([True, False, False, True])
    assert viz.mask_states(before, after).tolist() == [0, 1, 2, 3]
    with pytest.raises(InvalidArgumentError, match="shapes"):
        viz.mask_states(before, after[:2])


@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (8, 2, 3, 3)])
def test_plot_mask(shape):
    mask = np.random.default_rng(0).random(shape) < 0.25
    figure = viz.plot_mask(mask, "layer")
    assert isinstance(figure, Figure)
    image = figure.axes[0].images[0].get_array()
    assert image.sum() == mask.sum() and image.shape[0] <= image.shape[1]
    assert f"{100 * (1 - mask.mean()):.1f}% sparse" in figure.axes[0].get_title()


@pytest.mark.parametrize("palette", viz.PALETTES)
def test_evolution_draws_every_change(palette):
    figure = viz.plot_mask_evolution(MASKS, palette=palette)
    for axis, before, after in zip(figure.axes, MASKS[:-1], MASKS[1:], strict=True):
        assert np.array_equal(axis.images[0].get_array(), viz.mask_states(before, after))
        assert f"{(before & ~after).sum()} pruned, {(after & ~before).sum()} regrown in the whole" in axis.get_title()
        assert axis.images[0].cmap.N == 4
    figure.canvas.draw()


def test_counts_are_of_the_whole_layer_and_tall_layers_are_transposed():
    tall = [mask.T for mask in MASKS[:2]]
    (axis,) = viz.plot_mask_evolution(tall, columns=slice(0, 5)).axes
    assert axis.images[0].get_array().shape == (4, 5)
    assert f"{(tall[0] & ~tall[1]).sum()} pruned" in axis.get_title()
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("output", "input")


def test_published_colours():
    assert viz.PALETTES["published"] == ("#ffffff", "#000000", "#e41a1c", "#2ca02c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": MASKS[:1]}, "at least two"),
        ({"masks": MASKS, "palette": "jet"}, "palette=.jet.; use one of published, colorblind"),
        ({"masks": MASKS, "labels": ["a"]}, "one label for each of the 3 masks"),
    ],
)
def test_evolution_refusals(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        viz.plot_mask_evolution(**arguments)


def test_training_benchmark_and_densities(small_cnn):
    history = History(test_accuracy=[50.0, 90.0], test_loss=[1.0, 0.1], seconds=[1.0, 1.0])
    left, right = viz.plot_training({"a": history, "b": history}).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[50.0, 90.0]] * 2
    assert right.get_yscale() == "log" and left.get_ylabel() == "test accuracy (%)"

    result = benchmark({"first": lambda: 1.0, "second": lambda: 1.0}, runs=3)
    axis = viz.plot_benchmark(result, "race").axes[0]
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == pytest.approx(result.table()["median ms"].tolist())
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]

    nnz = {scheme: layer_nnz(small_cnn, 0.9, scheme) for scheme in ("uniform", "erk")}
    sizes = {"features.0": 36, "hidden": 12544, "out": 160}
    axis = viz.plot_densities(nnz, sizes).axes[0]
    heights = [bar.get_height() for bar in axis.patches]
    assert heights == pytest.approx([100 * nnz[s][layer] / sizes[layer] for s in nnz for layer in sizes])


def test_break_even_lies_between_the_measured_sparsities():
    sparsity = np.array([0.0, 0.5, 0.9])
    assert viz.break_even(sparsity, np.array([4.0, 2.0, 0.5])) == pytest.approx(0.7)
    assert viz.break_even(sparsity, np.array([4.0, 0.5, 2.0])) is None
    assert viz.break_even(sparsity, np.array([0.9, 0.5, 0.2])) == 0.0


def test_crossover_has_a_panel_per_layer_and_batch():
    names = ("dense", "Dense+Mask", "torch CSR", "ours")
    rows = [
        {"width": width, "batch": 16, "sparsity": s, **dict.fromkeys(names, 1.0), "ours": 2 - 2 * s}
        for width in (10, 20)
        for s in (0.0, 0.4, 0.8)
    ]
    figure = viz.plot_crossover(rows, ours="ours")
    assert [axis.get_title() for axis in figure.axes] == ["10×10, batch 16", "20×20, batch 16"]
    assert all("47%" in [text.get_text() for text in axis.texts] for axis in figure.axes)


# ------------------------------------------------------------------------------------------ comparison of algorithms


def referee_rows():
    """Return two sparsities of every contender that the comparison draws, and dense."""
    names = [*referee_plots.REFEREE_STYLES, *referee_plots.BANDS]
    rows = [("dense", 0.0, 99.2), *((name, s, 99 - s + i / 10) for i, name in enumerate(names) for s in (0.9, 0.99))]
    table = pd.DataFrame(rows, columns=["contender", "sparsity", "accuracy"])
    return table.assign(low=table["accuracy"] - 0.1, high=table["accuracy"] + 0.1, seconds=10.0, bytes=1e6)


def test_the_comparison_shows_every_contender_and_every_sparsity():
    (axis,) = referee_plots.plot_referee(referee_rows()).axes
    names = {text.get_text() for text in axis.get_legend().get_texts()}
    assert names == {"dense", *referee_plots.REFEREE_STYLES, *referee_plots.BANDS}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["90", "99"]
    assert "sparsity" in axis.get_xlabel() and "interval" in axis.get_ylabel()


def test_the_waterfall_starts_at_the_published_number_and_adds_up():
    table = pd.DataFrame({"contender": ["a", "b", "c"], "accuracy": [97.0, 99.0, 98.5]})
    (axis,) = referee_plots.plot_waterfall(
        table.assign(low=table["accuracy"] - 0.1, high=table["accuracy"] + 0.1), 96.0
    ).axes
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches] == [(96, 97), (97, 99), (99, 98.5)]
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["97.00 (+1.00)", "99.00 (+2.00)", "98.50 (-0.50)"]


def test_the_tradeoff_has_time_and_bytes():
    left, right = referee_plots.plot_tradeoff(referee_rows()).axes
    assert "(s" in left.get_xlabel() and "MB" in right.get_xlabel()
    assert len(left.lines) == len(right.lines) == 1 + len(referee_plots.REFEREE_STYLES) + len(referee_plots.BANDS)
