"""The statistics, tables, picture and verdicts of the decade's runs, on made-up runs in which the answer is known."""

import itertools
import math

import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from benchmarks.decade_methods import Wide, with_drawn_places
from benchmarks.decade_ranks import by_seed, critical_difference, friedman, mean_ranks, of_races, ranks
from tools import decade_claims, decade_results
from tools.decade_evidence import (
    AT_RANDOM,
    FOR_COMPARISON,
    FULL,
    HOLDS,
    IN_PART,
    NO_DIFFERENCE,
    NOT,
    NOT_RUN,
    NOT_TESTABLE,
    ONE_SEED,
    SMALL,
    TASKS,
    TWO,
    Found,
    better,
    early,
    equal,
    exploration_explains,
    gain_of_length,
    longer,
    more,
    never_cut,
    overall,
    slope_over_widths,
    without_loss,
)
from truly_sparse import layer_nnz, sparse_layers, synflow
from truly_sparse.recipes.decade import METHODS
from tutorial_lib import TutorialCNN
from tutorial_lib.project import ROOT

SEEDS = 3
NOISE = (-0.03, 0.0, 0.03)  # of each seed


def runs(accuracy, sparsities=TWO, race="methods", images=SMALL, **columns):
    """Runs of contenders: accuracy by name, the same at every sparsity, with noise that depends on name and seed."""
    rows = []
    for place, (name, value) in enumerate(accuracy.items()):
        at = (0.0,) if name.startswith("dense") else sparsities
        for sparsity, seed in itertools.product(at, range(SEEDS)):
            noise = NOISE[(seed + place) % SEEDS]
            row = {"contender": name, "sparsity": sparsity, "seed": seed, "accuracy": value + noise}
            row |= {"race": race, "images": images, "exploration": 0.1, "rewirings": 13, "bytes": 1e5}
            rows.append(row | {column: values[name] for column, values in columns.items()})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def everything():
    """Made-up runs of all races, in which a contender is the better the later it stands in its race."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        from benchmarks.decade import RACES
    return pd.concat(
        runs(
            {name: 90 + 0.3 * place for place, name in enumerate(race.contenders)},
            race.sparsities,
            race.question,
            race.images or FULL,
            exploration={name: 0.01 * place for place, name in enumerate(race.contenders)},
        )
        for race in RACES
    )


@pytest.fixture
def recorded(everything, monkeypatch):
    """The pages see the made-up runs."""
    monkeypatch.setattr(decade_results, "recorded", lambda: everything)
    return everything


# ------------------------------------------------------------------------------------------ statistics


def test_ranks_are_of_pairs_that_all_have():
    table = runs({"a": 90, "b": 92, "c": 91})
    more = runs({"a": 90}, (0.98,), "methods, more sparsities")
    once = runs({"from one seed": 95})
    places = ranks(pd.concat([table, more, runs({"dense": 99}), once[once["seed"] == 0]]))
    assert list(places.columns) == ["a", "b", "c"] and len(places) == 2 * SEEDS
    assert (places == [3, 1, 2]).all(axis=None)
    assert list(ranks(pd.concat([table, once])[lambda all_: all_["seed"] == 0])) == ["a", "b", "c", "from one seed"]
    many = runs({name: 90 for name in "defg"})
    fewer = ranks(pd.concat([table, many[many["seed"] < 2]]))  # 7 contenders × 4 pairs are more runs than 3 × 6
    assert len(fewer.columns) == 7 and len(fewer) == 4


def test_a_part_of_a_race_belongs_to_it():
    table = pd.concat([runs({"a": 90}, race=race) for race in ("methods", "methods, slow ones", "method", "length")])
    assert set(of_races(table, SMALL, "methods")["race"]) == {"methods", "methods, slow ones"}
    assert of_races(table, FULL, "methods").empty


def test_mean_ranks_have_intervals_and_equal_contenders_share_a_rank():
    table = runs({"a": 90, "b": 92})
    table.loc[(table["contender"] == "a") & (table["seed"] == 0), "accuracy"] = 95  # first in a third of the pairs
    found = mean_ranks(ranks(table))
    assert list(found.index) == ["b", "a"] and found.loc["a", "mean"] == pytest.approx(5 / 3)
    assert found.loc["a", "low"] < 5 / 3 < found.loc["a", "high"] <= 2
    alike = pd.concat([runs({"a": 90}), runs({"b": 90})])
    assert (ranks(alike) == 1.5).all(axis=None)
    assert math.isnan(mean_ranks(ranks(alike).iloc[:1])["low"].iloc[0])


def test_the_critical_difference_is_that_of_demsars_example():
    places = pd.DataFrame(0.0, index=range(14), columns=list("abcd"))
    assert critical_difference(places) == pytest.approx(1.25, abs=0.005)  # Demšar (2006), 3.2.2
    assert critical_difference(places, alpha=0.1) == pytest.approx(1.12, abs=0.005)


def test_friedmans_test_tells_an_order_from_none():
    assert friedman(ranks(runs({"a": 90, "b": 91, "c": 92})))[1] < 0.01
    in_turn = pd.DataFrame([[1, 2, 3], [2, 3, 1], [3, 1, 2]], columns=list("abc"))
    assert friedman(in_turn) == (0.0, 1.0)


def test_accuracy_by_seed_needs_every_sparsity_unless_dense():
    table = pd.concat([runs({"a": 90}), runs({"dense": 99})])
    table = table.drop(table.index[(table["sparsity"] == 0.99) & (table["seed"] == 1)])
    assert list(by_seed(table, "a", TWO).index) == [0, 2] and list(by_seed(table, "dense", TWO).index) == [0, 1, 2]
    assert by_seed(table, "b", TWO).empty and by_seed(table, "a", (0.5,)).empty


# ------------------------------------------------------------------------------------------ verdicts


def verdict(evidence, *tables):
    return overall(evidence(pd.concat(tables)))


@pytest.mark.parametrize(
    "difference, is_better, loses_nothing, is_equal",
    [
        (1.0, HOLDS, HOLDS, NOT),
        (0.2, HOLDS, HOLDS, HOLDS),
        (0.01, NO_DIFFERENCE, HOLDS, HOLDS),
        (-0.2, NOT, HOLDS, HOLDS),  # less than the margin below
        (-0.48, NOT, NOT, NOT),  # the interval passes the margin
        (-1.0, NOT, NOT, NOT),
    ],
)
def test_a_verdict_follows_from_the_interval(difference, is_better, loses_nothing, is_equal):
    table = runs({"b": 90, "a": 90 + difference})
    for kind, expected in ((better, is_better), (without_loss, loses_nothing), (equal, is_equal)):
        assert verdict(kind(("a", "b"), at=TWO, images=(SMALL,)), table) == expected, kind.__name__


def test_with_much_noise_no_difference_is_seen():
    table = runs({"b": 90, "a": 90})
    table.loc[table["contender"] == "a", "accuracy"] += table["seed"].map({0: -3, 1: 0, 2: 3})
    for kind in (better, without_loss, equal):
        assert verdict(kind(("a", "b"), at=TWO, images=(SMALL,)), table) == NO_DIFFERENCE


def test_the_margin_is_that_of_the_task():
    assert verdict(without_loss(("a", "b"), at=TWO), runs({"b": 90, "a": 89.7})) == HOLDS
    assert verdict(without_loss(("a", "b"), at=TWO), runs({"b": 90, "a": 89.7}, images=FULL)) == NOT


def test_what_was_not_run_has_no_verdict():
    evidence = better(("a", "b"), at=TWO)
    table = runs({"b": 90, "a": 91})
    assert verdict(evidence, table.iloc[:0]) == verdict(evidence, table[table["contender"] == "a"]) == NOT_RUN
    one_seed = evidence(table[table["seed"] == 0])[0]
    assert one_seed.verdict == ONE_SEED and "one seed" in one_seed.numbers
    at_one = evidence(pd.concat([table, runs({"a": 99}, (0.9,))]))[0]
    assert at_one.what.endswith("95%, 99%") and at_one.numbers.startswith("1.0"), "where both were trained"


def test_pairs_that_differ_in_their_settings_only_are_told_apart():
    table = runs({name: 90 for name in ("a, own", "b, own", "a, common", "b, common", "c, own")})
    pieces = better(("a, own", "b, own"), ("a, common", "b, common"), ("a, own", "c, own"), at=(0.95,), images=(SMALL,))
    names = [piece.what.removesuffix(", 1,000 images, 95%") for piece in pieces(table)]
    assert names == ["a, own − b, own", "a, common − b, common", "a − c"]


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        ((HOLDS, HOLDS, NOT_RUN), HOLDS),
        ((HOLDS, NOT), IN_PART),
        ((HOLDS, NO_DIFFERENCE), IN_PART),
        ((NOT, NO_DIFFERENCE, FOR_COMPARISON), NOT),
        ((NOT_RUN, FOR_COMPARISON), NOT_RUN),
        ((NOT_RUN, ONE_SEED), ONE_SEED),
        ((NOT, ONE_SEED), NOT),
    ],
)
def test_pieces_make_one_verdict(verdicts, expected):
    assert overall([Found("", "", each) for each in verdicts]) == expected


@pytest.mark.parametrize("gain, expected", [(2.0, HOLDS), (0.0, NOT)])
def test_longer_training_is_compared_with_dense_at_the_usual_length(gain, expected):
    usual, long = runs({"a": 90, "dense": 91}), runs({"a": 90 + gain}, race="length")
    found = longer("a", more)(pd.concat([usual, long]))
    assert overall(found) == expected
    assert [piece.verdict for piece in found[2:]] == [FOR_COMPARISON] * 2 and "−1.00" in found[2].numbers


@pytest.mark.parametrize("gain, expected", [(2.0, HOLDS), (1.0, NO_DIFFERENCE), (0.0, NOT)])
def test_what_length_adds_is_compared_with_what_it_adds_to_another(gain, expected):
    long = runs({"static": 91, "a": 90 + gain}, race="length")
    assert verdict(gain_of_length("a", "static"), runs({"static": 90, "a": 90}), long) == expected


@pytest.mark.parametrize("sign, expected", [(1, HOLDS), (-1, NOT)])
def test_evidence_of_the_first_epoch_widths_and_exploration_flips(sign, expected):
    first = runs({"a": 90 + sign, "b": 90}, race="first epoch", images=FULL)
    assert verdict(early("a", "b"), first, runs({"a": 90, "b": 95}, images=FULL)) == expected
    gaps = {0.25: -3, 0.5: -2, 1.0: -1, 2.0: 0}
    wide = {f"static, width {w}": 90 + sign * gap for w, gap in gaps.items()} | {f"dense, width {w}": 90 for w in gaps}
    assert verdict(slope_over_widths, runs(wide, (0.95,), "widths")) == expected
    a, b, c = AT_RANDOM[:3]
    share = {a: 0.2, b: 0.4, c: 0.6, "static": 0.9, "RigL": 0.1}
    explored = runs({a: 90, b: 90 + sign, c: 90 + 2 * sign, "static": 90, "RigL": 99}, exploration=share)
    explored.loc[(explored["seed"] == 0) & (explored["contender"] == b), "accuracy"] += 0.5 * sign  # c − b: 1 to 0.5
    assert exploration_explains(explored)[0].numbers.startswith("1.00" if sign > 0 else "−1.00")
    assert verdict(exploration_explains, explored) == expected


def test_a_network_that_is_cut_is_noticed():
    evidence = never_cut("SynFlow, own", ("SNIP, own",))
    assert verdict(evidence, runs({"SynFlow, own": 80, "SNIP, own": 11})) == HOLDS
    assert verdict(evidence, runs({"SynFlow, own": 11, "SNIP, own": 80})) == NOT
    assert verdict(evidence, runs({"SNIP, own": 80})) == NOT_RUN


def test_at_least_twelve_claims_are_tried_and_every_one_names_runs_that_are_planned(everything):
    _, rows = decade_claims.tried_table(everything)
    verdicts = [row[-1] for row in rows]
    assert sum(each != NOT_TESTABLE for each in verdicts) >= 12 and NOT_RUN not in verdicts
    assert len({tuple(row[:2]) for row in rows}) == len(rows)
    assert not any("|" in cell or "\n" in cell for row in rows for cell in row), "this would end a cell"
    _, rows = decade_claims.tried_table(everything.iloc[:0])
    assert {row[-1] for row in rows} == {NOT_RUN, NOT_TESTABLE}


# ------------------------------------------------------------------------------------------ tables and picture


@pytest.mark.parametrize("images", TASKS)
def test_each_contender_has_a_row_in_each_table(images, recorded):
    names = {name for name in recorded[recorded["images"] == images]["contender"] if "," not in name or "own" in name}
    for table in (decade_results.accuracies_table, decade_results.differences_table):
        header, rows = table(images)
        listed = {row[0] for row in rows} | {"static", "dense"}
        assert {name for name in names if "RigL" not in name} <= listed and {"95%", "99%"} <= set(header)
        assert all(len(row) == len(header) for row in rows)
    header, rows = decade_results.equal_terms_table(images)
    methods = [row[0] for row in rows]
    assert {"static", "SET", "RigL", "DSR", "dense"} <= set(methods) and len(set(methods)) == len(methods)
    by_method = dict(zip(methods, rows, strict=True))
    assert by_method["SET"][1] != by_method["SET"][2] and by_method["RigL"][1] == by_method["RigL"][2]
    assert by_method["dense"][1] == "–" and by_method["DSR"][3].startswith("90.00 ± ") and len(header) == len(rows[0])
    _, rows = decade_results.own_settings_table()
    assert [row[0] for row in rows] == [method.name for method in METHODS] and all(row[1] for row in rows)


def test_tables_without_runs_say_so(monkeypatch):
    monkeypatch.setattr(decade_results, "load_result", lambda name: None)
    for images in TASKS:
        for table in ("equal_terms_table", "accuracies_table", "differences_table"):
            header, rows = getattr(decade_results, table)(images)
            assert rows[0][:2] == ["all", "not measured"] and len(rows[0]) == len(header)
    header, rows = decade_results.cost_table()
    assert rows[0][1] == "not measured" and len(rows[0]) == len(header)
    assert decade_results.friedman_words().count("not measured") == 2 and decade_results.drawn_ranks().empty


def test_the_cost_of_a_training_is_steps_and_rewirings_and_what_comes_before(recorded, monkeypatch):
    rows = {
        "static": {"step ms": [1.0, 2.0, 9.0], "rewiring ms": [], "seconds before": [0.0]},
        "SET, own": {"step ms": [2.0], "rewiring ms": [1000.0], "seconds before": [5.0]},
    }
    monkeypatch.setattr(decade_results, "load_result", lambda name: {"rows": rows, "steps of a training": 9380})
    header, table = decade_results.cost_table()
    found = {row[0]: dict(zip(header, row, strict=True)) for row in table}
    assert found["static"]["ms a step"] == "2.00" and found["static"]["ms a rewiring"] == "–"
    assert found["static"]["s a training"] == "19" and found["SET, own"]["s a training"] == f"{5 + 18.76 + 13:.0f}"
    assert found["RigL, common and own"]["ms a step"] == "not measured", "it has runs but was not timed"


def test_what_a_rewiring_adds_is_told_from_plain_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        from benchmarks.decade_cost import costs
    seconds = [9.0, 9.0] + [1.0] * 48
    seconds[19], seconds[20], seconds[21] = 2.0, 5.0, 1.5  # records, rewires, prepares
    assert costs(seconds, [20], before=1) == (1.0, 5.5)
    assert costs(seconds, [20], before=0) == (1.0, 4.5)
    assert costs(seconds, [], before=0)[0] == 1.0 and math.isnan(costs(seconds, [], before=0)[1])
    every_step = costs([2.0] * 50, list(range(50)), before=0)
    assert every_step[0] == 2.0 and math.isnan(every_step[1])


def test_the_picture_can_be_read(recorded):
    figure = decade_results.plot_ranks()
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == len(TASKS)
    for axis, (_, of_task) in zip(figure.axes, decade_results.drawn_ranks().groupby("task", sort=False), strict=True):
        texts = {text.get_text(): text.get_window_extent() for text in axis.texts}
        assert all(any(name in text for text in texts) for name in of_task["contender"])
        assert [pair for pair in itertools.combinations(texts, 2) if texts[pair[0]].overlaps(texts[pair[1]])] == []
        assert all(figure.bbox.contains(*extent.min) and figure.bbox.contains(*extent.max) for extent in texts.values())


def test_colours_of_the_picture_are_those_of_the_timeline():
    assert decade_results.colour_of("SNFS without sharing, common") == decade_results.colour_of("RigL, common and own")
    assert decade_results.colour_of("SET, own") != decade_results.colour_of("static")
    assert len({decade_results.colour_of(name) for name in ("static", "SET, own", "SRigL, own", "CHT, own")}) == 4


def test_a_layers_share_can_be_taken_without_its_places():
    dense = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    chosen = synflow(dense, (20,), 0.8)
    drawn = [dict(with_drawn_places(dense, chosen, seed).named_buffers()) for seed in (0, 0, 1)]
    for name, mask in chosen.named_buffers():
        assert drawn[0][name].sum() == mask.sum() and torch.equal(drawn[0][name], drawn[1][name])
    assert any(not torch.equal(drawn[0][name], other) for name, other in drawn[2].items())


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_networks_of_other_widths_have_erk_densities(width):
    model = Wide(width=width).build(0.95, seed=0)
    nnz = {name: layer.index.nnz for name, layer in sparse_layers(model).items()}
    assert nnz == layer_nnz(TutorialCNN(width), 0.95, "erk")
