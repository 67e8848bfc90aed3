"""The referee: equal terms, every run kept, intervals that are right."""

import pandas as pd
import pytest
import torch

from truly_sparse import SET, SNFS, InvalidArgumentError, RigL, Static, layer_nnz, sparse_layers
from tutorial_lib import TutorialCNN, multiply_adds, train
from tutorial_lib import compare as everything
from tutorial_lib.checkpoint import CheckpointError
from tutorial_lib.compare import Budget, compare, interval, paired_difference
from tutorial_lib.contenders import Dense, Gradual, SmallDense, Sparse

BRIEF = Budget(epochs=2)  # ten steps
RIGL = Sparse(how=RigL(every=2))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_contender_on_equal_terms(digits):
    contenders = {
        "dense": Dense(),
        "static": Sparse(how=Static()),
        "RigL": RIGL,
        "SNFS": Sparse(how=SNFS(every=2)),
        "narrow": SmallDense(same="weights"),
        "light": SmallDense(same="multiply-adds"),
        "gradual": Gradual(),
    }
    runs = compare(contenders, digits, (0.9, 0.99), (0, 1), BRIEF, progress=False).runs
    assert len(runs) == 2 * (1 + 6 * 2) and not runs.isna().any().any()
    at = {(row.contender, row.sparsity): row for row in runs[runs["seed"] == 0].itertuples()}
    for sparsity, budget in ((0.9, 134_346), (0.99, 13_435)):
        for name in ("static", "RigL", "SNFS", "gradual"):
            assert at[name, sparsity].weights == budget
        assert 0.97 * budget < at["narrow", sparsity].weights <= budget
        light, rigl = at["light", sparsity], at["RigL", sparsity]
        assert 0.8 * rigl.forward < light.forward <= rigl.forward
        assert rigl.rewirings == 3 and at["static", sparsity].rewirings == 0
        assert at["static", sparsity].exploration == budget / 1_343_456 < rigl.exploration
        assert at["static", sparsity].growth == 0 < rigl.growth < at["SNFS", sparsity].growth
        assert at["gradual", sparsity].forward == at["dense", 0.0].forward > rigl.forward
        assert at["gradual", sparsity].bytes > at["dense", 0.0].bytes > rigl.bytes


def test_multiply_adds_by_hand(digits):
    (row,) = compare({"RigL": RIGL}, digits, (0.95,), (0,), BRIEF, progress=False).runs.itertuples()
    dense = multiply_adds(TutorialCNN(), (1, 28, 28))["executed"].drop("total")
    nnz = layer_nnz(TutorialCNN(), 0.95, "erk")
    size = {name: layer.weight.numel() for name, layer in TutorialCNN().named_children()}
    sparse = {name: dense[name] * nnz[name] // size[name] for name in dense.index}
    assert row.forward == 600 * sum(sparse.values())
    assert row.backward == 600 * (2 * sum(sparse.values()) - sparse["conv1"])
    assert row.growth == 3 * 64 * sum(dense[name] for name in dense.index if nnz[name] < size[name])


def test_one_seed_starts_all_alike():
    first, second = (Sparse(how=how).build(0.9, seed=3) for how in (SET(), RigL()))
    for a, b in zip(sparse_layers(first).values(), sparse_layers(second).values(), strict=True):
        assert torch.equal(a.active(), b.active()) and torch.equal(a.active_values(), b.active_values())


def test_what_was_run_is_not_run_again(digits, tmp_path, monkeypatch):
    first = compare({"RigL": RIGL}, digits, (0.99,), (0,), BRIEF, folder=tmp_path, progress=False)

    def never(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(everything, "train_one", never)
    again = compare({"RigL": RIGL}, digits, (0.99,), (0,), BRIEF, folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(first.runs, again.runs)


def test_a_run_that_was_stopped_goes_on(digits, tmp_path, monkeypatch):
    whole = compare({"RigL": RIGL}, digits, (0.99,), (0,), BRIEF, progress=False).runs
    evaluate, calls = train.evaluate, []

    def stop_in_the_second_epoch(model, data):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(model, data)

    monkeypatch.setattr(train, "evaluate", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        compare({"RigL": RIGL}, digits, (0.99,), (0,), BRIEF, folder=tmp_path, progress=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".checkpoint"]
    resumed = compare({"RigL": RIGL}, digits, (0.99,), (0,), BRIEF, folder=tmp_path, progress=False).runs
    assert len(calls) == 3  # one epoch was left to do
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"))


def test_processes_side_by_side_do_the_same(digits):
    alone = compare({"RigL": RIGL}, digits, (0.95, 0.99), (0,), BRIEF, progress=False).runs
    beside = compare({"RigL": RIGL}, digits, (0.95, 0.99), (0,), BRIEF, workers=2, progress=False).runs
    pd.testing.assert_frame_equal(alone.drop(columns="seconds"), beside.drop(columns="seconds"))


def test_interval_of_a_mean():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841377, 2 + 2.4841377))
    assert interval([5.0, 5.0]) == (5.0, 5.0) and all(bound != bound for bound in interval([1.0]))


def test_paired_difference_is_sharper_than_two_intervals():
    rows = [("a", 0.9, seed, 90 + seed + 1) for seed in range(4)] + [("b", 0.9, seed, 90 + seed) for seed in range(4)]
    runs = pd.DataFrame(rows, columns=["contender", "sparsity", "seed", "accuracy"])
    assert paired_difference(runs, "a", "b", 0.9) == (1.0, 1.0, 1.0)
    with pytest.raises(InvalidArgumentError, match="no seed"):
        paired_difference(runs, "a", "c", 0.9)


def test_the_table_holds_means_and_intervals():
    rows = [
        {"contender": "a", "sparsity": 0.9, "seed": seed, "accuracy": 90.0 + seed, "seconds": 10**seed}
        for seed in range(3)
    ]
    (row,) = everything.Comparison(pd.DataFrame(rows)).table().itertuples()
    assert (row.seeds, row.accuracy, row.seconds) == (3, 91.0, 10)
    assert (row.low, row.high) == pytest.approx(interval([90.0, 91.0, 92.0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"contenders": {}},
        {"sparsities": ()},
        {"seeds": ()},
        {"seeds": (0, 0)},
        {"sparsities": (0.9, 0.9)},
        {"workers": 0},
    ],
    ids=str,
)
def test_nothing_to_compare(digits, wrong):
    arguments = {"contenders": {"dense": Dense()}, "sparsities": (0.9,), "seeds": (0,)} | wrong
    with pytest.raises(InvalidArgumentError):
        compare(data=digits, progress=False, **arguments)


@pytest.mark.parametrize("wrong", [SmallDense(same="size"), Sparse(how=RigL(), init="he")])
def test_a_contender_with_a_bad_setting(wrong):
    with pytest.raises(InvalidArgumentError, match=r"same='size'|init='he'"):
        wrong.build(0.9, 0)


def tiny():
    class Mine(SmallDense):
        def build(self, sparsity, seed):
            return TutorialCNN(0.01)

    return Mine()


def less_tiny():
    class Mine(SmallDense):
        def build(self, sparsity, seed):
            return TutorialCNN(0.02)

    return Mine()


def test_a_contender_whose_code_has_changed_is_trained_again(digits, tmp_path):
    for contender, runs in ((tiny(), 1), (tiny(), 1), (less_tiny(), 2), (tiny(), 2)):
        compare({"mine": contender}, digits, (0.99,), (0,), Budget(1, 300), folder=tmp_path, progress=False)
        assert len(list(tmp_path.iterdir())) == runs


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"contender": "a", "sparsity": 0.5, "seed": 0}', "[" * 100_000]
)
def test_a_damaged_run_is_not_trusted(content, digits, tmp_path):
    asked = {"small": SmallDense()}, digits, (0.99,), (0,), Budget(epochs=1, batch_size=300)
    compare(*asked, folder=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    file.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged or another run's; delete it"):
        compare(*asked, folder=tmp_path, progress=False)


def test_a_folder_that_cannot_be_written(digits, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot"):
        compare({"a": SmallDense()}, digits, (0.99,), (0,), Budget(1, 300), folder=tmp_path / "file", progress=False)
