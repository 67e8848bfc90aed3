"""``benchmarks/enter.py`` enters a rule of one's own among the recorded methods, or says why it cannot."""

import subprocess
import sys

import pandas as pd
import pytest
import torch

from tests.own_network import RULE_PAGE, blocks_of
from truly_sparse import CHT, DSR, GraNet, SparseMomentum, SRigL, TopKAST
from tutorial_lib import load_data
from tutorial_lib.compare import Budget
from tutorial_lib.project import ROOT

RECORDED = {"static": 60.0, "RigL, common and own": 70.0, "SET, own": 65.0}


@pytest.fixture
def enter(monkeypatch):
    """The program, with a tiny budget, small data and made-up recorded runs from two seeds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # it adds folders
    import enter

    rows = [
        {"contender": name, "sparsity": 0.99, "seed": seed, "accuracy": value + 0.1 * seed}
        for name, value in RECORDED.items()
        for seed in (0, 1)
    ]
    runs = pd.DataFrame([*rows, {"contender": "dense", "sparsity": 0.0, "seed": 0, "accuracy": 101.0}])
    runs = runs.assign(race="methods", images=enter.IMAGES)
    monkeypatch.setattr(enter, "load_result", lambda name: {"runs": runs.to_dict(orient="list")})
    monkeypatch.setattr(enter, "BUDGET", Budget(epochs=1, batch_size=16))
    monkeypatch.setattr(enter, "data_of", lambda images: load_data("digits", train_size=80))
    return enter


def entered(enter, folder, name, text, *options):
    """Enter a file with this text; return the status."""
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return enter.main([str(path), "--workers", "1", *options])


def test_the_template_of_the_page_is_entered_and_ranked(enter, tmp_path, capsys):
    assert entered(enter, tmp_path, "template_of_the_page", blocks_of(RULE_PAGE)["rule"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{out}" for name in [*RECORDED, "dense", "template_of_the_page.py"])
    assert "template_of_the_page.py: place " in out and " of 5 by mean accuracy." in out
    assert "Mean rank over 2 seeds: " in out and " of 4 sparse contenders." in out
    assert "Against static, paired by seed: " in out and "Against RigL, paired by seed: " in out


def test_a_recipe_is_entered_as_it_is(enter, tmp_path, capsys, monkeypatch):
    text = "from truly_sparse import Static\nrecipe = Static()\n"
    assert entered(enter, tmp_path, "whole_recipe", text) == 0
    assert "whole_recipe.py: place " in capsys.readouterr().out
    assert isinstance(enter.recipe_of({"prune": "magnitude"}), enter.RigL), "rules take the place of RigL's"


@pytest.mark.parametrize("recipe", [TopKAST(), DSR(), SparseMomentum(), GraNet(), SRigL(), CHT()])
def test_a_recipe_is_trained_as_the_recorded_contender_of_its_kind(enter, recipe):
    import decade_methods

    made = enter.contender_of(recipe)
    assert made in (decade_methods.TRULY_SPARSE | decade_methods.FROM_DENSE).values()
    network = made.build(0.9, seed=0)
    made.recipe(0.9).attach(network, torch.optim.Adam(network.parameters()), steps_per_epoch=5, total_steps=10, seed=0)


def test_who_is_more_accurate_stands_higher(enter):
    runs = enter.recorded(0.99)
    mine = pd.DataFrame({"contender": "mine.py", "sparsity": 0.99, "seed": [0, 1], "accuracy": [66.0, 66.1]})
    runs = pd.concat([runs, mine])
    table = enter.standing(runs, "mine.py", 0.99)
    assert list(table.index) == ["dense", "RigL, common and own", "mine.py", "SET, own", "static"]
    assert table.loc["mine.py", "place"] == 3 and table.loc["static", "entry − this, points"] == "6.00 (6.00 to 6.00)"
    assert enter.rank_words(runs, "mine.py") == "Mean rank over 2 seeds: 2.00 (2.00 to 2.00) of 4 sparse contenders."


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("empty_entry", "", "defines nothing to enter; define grow or prune or both"),
        ("both_entry", "recipe = 1\nprune = 'magnitude'", "defines recipe and prune; define grow or prune or both"),
        ("no_recipe_entry", "recipe = 1", "recipe=1 cannot be entered; give a recipe"),
        ("snip_entry", "from truly_sparse import snip as recipe", "snip, and gradual pruning can be added"),
        ("no_rule_entry", "grow = 'no such rule'", "no such rule"),
        ("broken_entry", "1 / 0", "does not run: ZeroDivisionError"),
        ("faulty_entry", "import torch\n\ndef prune(layer):\n    return torch.zeros(3)", "return one score each"),
        ("lambda_entry", "prune = lambda layer: layer.active_values().abs()", "write functions, not lambdas"),
        ("torch", "prune = 'magnitude'", "another module is called 'torch'; rename the file"),
        ("stopped_entry", "from truly_sparse import DSR\nrecipe = DSR(scope='global')", "the training stopped"),
    ],
)
def test_what_cannot_be_entered_is_said(enter, tmp_path, capsys, name, text, said):
    assert entered(enter, tmp_path, name, text) == 1
    assert said in capsys.readouterr().err


def test_a_sparsity_without_recorded_runs_is_refused(enter, tmp_path, capsys, monkeypatch):
    assert entered(enter, tmp_path, "elsewhere", "prune = 'magnitude'", "--sparsity", "0.5") == 1
    assert "no run is recorded there; recorded are 0.99" in capsys.readouterr().err
    monkeypatch.setattr(enter, "load_result", lambda name: None)
    assert entered(enter, tmp_path, "elsewhere", "prune = 'magnitude'") == 1
    assert "none; run benchmarks/decade.py" in capsys.readouterr().err


def test_a_missing_file_ends_the_command_with_one_line(tmp_path):
    command = [sys.executable, "benchmarks/enter.py", str(tmp_path / "missing.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "missing.py: there is no such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
