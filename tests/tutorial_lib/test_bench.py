"""Benchmarks check equal outputs and interleave runs; result files are complete and record their provenance."""

import json
import math

import pytest
import torch

from truly_sparse import InvalidArgumentError
from tutorial_lib import benchmark, load_data, load_result, save_result


def test_candidates_are_interleaved_and_counted():
    calls = []

    def candidate(name):
        return lambda: calls.append(name) or torch.ones(2)

    result = benchmark({"a": candidate("a"), "b": candidate("b")}, runs=3, warmup=1)
    assert calls == ["a", "b"] * 2 + ["a", "a", "b", "b"] * 3  # the check, one warm-up, three turns
    assert {name: len(runs) for name, runs in result.seconds.items()} == {"a": 3, "b": 3}
    assert result.threads == torch.get_num_threads() and result.device == "cpu"
    table = result.table()
    assert table.loc["a", "× faster than first"] == 1
    assert (table["fastest ms"] <= table["median ms"]).all() and (table["median ms"] <= table["slowest ms"]).all()


@pytest.mark.parametrize("other", [torch.tensor([1.0, 1.1]), torch.tensor([1.0]), torch.tensor([1.0, math.nan])])
def test_different_outputs_are_refused(other):
    with pytest.raises(InvalidArgumentError, match="compute the same"):
        benchmark({"a": lambda: torch.tensor([1.0, 1.0]), "b": lambda: other})


@pytest.mark.parametrize("arguments", [{"candidates": {}}, {"runs": 0}, {"warmup": -1}])
def test_bad_arguments(arguments):
    with pytest.raises(InvalidArgumentError):
        benchmark(**{"candidates": {"a": lambda: 1.0}, **arguments})


def test_saved_results_are_loaded_with_their_provenance(tmp_path):
    data = load_data("digits", train_size=20)
    path = save_result("speed", {"ms": [1.0, 2.0]}, command="make full", seed=3, data=data, folder=tmp_path)
    assert load_result("speed", tmp_path) == {"ms": [1.0, 2.0]}
    origin = json.loads(path.read_text())["provenance"]
    assert origin["command"] == "make full" and origin["seed"] == 3 and origin["data"]["sha256"] == data.sha256()
    assert (
        origin["packages"]["torch"] == torch.__version__.split("+")[0]
        or origin["packages"]["torch"] == torch.__version__
    )
    assert {"git_commit", "date_utc", "cpu", "gpu", "torch_threads", "profile"} <= set(origin)
    assert load_result("nothing", tmp_path) is None


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path):
    save_result("speed", {"ms": 1.0}, command="x", folder=tmp_path)
    with pytest.raises(InvalidArgumentError, match="cannot be written as JSON"):
        save_result("speed", {"ms": math.nan}, command="x", folder=tmp_path)
    assert load_result("speed", tmp_path) == {"ms": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["speed.json"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.complex64])
def test_outputs_of_any_kind_of_number_are_compared(dtype):
    outputs = torch.tensor([1, 0]).to(dtype), torch.tensor([0, 1]).to(dtype)
    assert benchmark({"a": lambda: outputs[0], "b": outputs[0].clone}, runs=1, warmup=0).seconds.keys() == {"a", "b"}
    with pytest.raises(InvalidArgumentError, match="'b' and 'a' differ by 1,"):
        benchmark({"a": lambda: outputs[0], "b": lambda: outputs[1]}, runs=1, warmup=0)
