"""Training: learns, repeats from a seed, and stops when there is nothing to learn from."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from truly_sparse import SET, DynamicSparsity, Epochs, InvalidArgumentError, RigL, Static, TrainingError
from tutorial_lib import evaluate, fit, mask_model
from tutorial_lib.callbacks import Callback


def test_learns_and_records(small_cnn, digits):
    history = fit(small_cnn, digits, epochs=15, lr=3e-3, progress=False)
    accuracy, loss = evaluate(small_cnn, digits)
    assert accuracy > 80 and history.test_accuracy[-1] == accuracy and history.test_loss[-1] == loss
    table = history.table()
    assert list(table.index) == list(range(1, 16)) and (table["seconds"] > 0).all()
    assert table["train_loss"].iloc[-1] < table["train_loss"].iloc[0]


def test_equals_a_bare_loop(digits):
    def make():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))

    ours, bare = make(), make()
    fit(ours, digits, epochs=2, lr=0.01, batch_size=50, progress=False, seed=5)
    optimizer = torch.optim.Adam(bare.parameters(), lr=0.01, fused=True)
    order = torch.Generator().manual_seed(5)
    for _ in range(2):
        for batch in torch.randperm(300, generator=order).split(50):
            optimizer.zero_grad()
            F.cross_entropy(bare(digits.train_x[batch]), digits.train_y[batch]).backward()
            optimizer.step()
    assert torch.equal(ours[1].weight, bare[1].weight)


@pytest.mark.parametrize("recipe", [None, Static(), SET(every=Epochs(1)), RigL(every=2)])
def test_same_seed_same_result(small_cnn, digits, recipe):
    results = []
    for _ in range(2):
        model = mask_model(small_cnn, 0.8)
        results.append(fit(model, digits, epochs=2, sparsity=recipe, progress=False, seed=1).test_loss)
    assert results[0] == results[1]


def test_every_topology_is_recorded(small_cnn, digits):
    model = mask_model(small_cnn, 0.8)
    start = model.hidden.mask.clone()
    history = fit(model, digits, epochs=3, sparsity=SET(prune_fraction=0.5, every=Epochs(1)), progress=False)
    assert history.topology.steps == [0, 5, 10]  # never after the last epoch
    assert torch.equal(torch.from_numpy(history.topology.mask("hidden", 0)), start)
    assert torch.equal(torch.from_numpy(history.topology.mask("hidden", -1)), model.hidden.mask)
    overlaps = history.topology.overlaps([0, 1, 2])
    assert overlaps[0, 1] < 1 and overlaps[1, 2] < 1


def test_takes_a_driver_with_its_own_optimizer(small_cnn, digits):
    model = mask_model(small_cnn, 0.8)
    driver = DynamicSparsity(model, torch.optim.SGD(model.parameters(), lr=0.01), every=2)
    fit(model, digits, epochs=1, sparsity=driver, progress=False)
    assert driver.steps == 5 and driver.rewirings == 2


def test_a_driver_that_has_trained_before_goes_on_where_it_stood(small_cnn, digits):
    """A fused optimizer reads weight and state side by side in memory: both must keep the same format."""
    model = mask_model(small_cnn, 0.8)
    driver = DynamicSparsity(model, torch.optim.Adam(model.parameters(), fused=True), every=2)
    for _ in range(3):
        driver.optimizer.zero_grad()
        F.cross_entropy(model(digits.train_x[:50]), digits.train_y[:50]).backward()
        driver.optimizer.step()
    fit(model, digits, epochs=1, sparsity=driver, progress=False)
    weight = model.features[0].weight
    assert driver.optimizer.state[weight]["step"] == 8
    assert driver.optimizer.state[weight]["exp_avg"].stride() == weight.stride()


def test_a_driver_of_another_model_and_other_things_are_refused(small_cnn, digits):
    model, other = mask_model(small_cnn, 0.8), mask_model(small_cnn, 0.8)
    driver = DynamicSparsity(other, torch.optim.SGD(other.parameters(), lr=0.01))
    with pytest.raises(InvalidArgumentError, match="another model"):
        fit(model, digits, sparsity=driver, progress=False)
    for wrong in (SET, 0.95):
        with pytest.raises((TypeError, AttributeError)):
            fit(model, digits, sparsity=wrong, progress=False)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_optimizers_and_schedules(small_cnn, digits, optimizer, schedule):
    history = fit(small_cnn, digits, epochs=2, lr=3e-3, optimizer=optimizer, schedule=schedule, progress=False)
    assert history.train_loss[1] < history.train_loss[0]


def test_progress_is_shown(small_cnn, digits, capsys):
    fit(small_cnn, digits, epochs=2)
    assert "epoch 2/2, test" in capsys.readouterr().err


def test_evaluate_leaves_the_mode_alone(small_cnn, digits):
    small_cnn.train()
    evaluate(small_cnn, digits)
    assert small_cnn.training


def test_a_loss_that_is_no_number_stops_at_its_step(small_cnn, digits):
    with torch.no_grad():
        small_cnn.out.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 \(epoch 1\); lower lr"):
        fit(small_cnn, digits, epochs=1, progress=False)
    assert small_cnn.hidden.weight.isfinite().all()  # the step was not taken


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range(small_cnn, digits, label):
    labels = digits.train_y.clone()
    labels[7] = label
    with pytest.raises(InvalidArgumentError, match="train_y holds labels from"):
        fit(small_cnn, dataclasses.replace(digits, train_y=labels), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0}, "lr=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"optimizer": "lion"}, "optimizer='lion'; use one of adam, adamw, sgd"),
        ({"schedule": "warm"}, "schedule='warm'"),
    ],
)
def test_bad_arguments(small_cnn, digits, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        fit(small_cnn, digits, progress=False, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_asked_for_and_absent(small_cnn, digits):
    with pytest.raises((RuntimeError, AssertionError), match=r"NVIDIA|CUDA"):
        fit(small_cnn, digits, device="cuda", progress=False)


def test_a_callback_of_ones_own_writes_scalars(small_cnn, digits, tmp_path):
    """The example in the documentation of callbacks."""

    class CSVScalars(Callback):
        def __init__(self, path):
            self.path = path

        def after_step(self, run):
            with open(self.path, "a") as file:
                file.write(f"{run.step},{run.loss}\n")

    path = tmp_path / "loss.csv"
    history = fit(small_cnn, digits, epochs=2, progress=False, callbacks=[CSVScalars(path)])
    steps, losses = zip(*(line.split(",") for line in path.read_text().splitlines()), strict=True)
    assert [int(step) for step in steps] == list(range(1, 11))
    sizes = [64, 64, 64, 64, 44]
    means = [sum(float(loss) * n for loss, n in zip(losses[i : i + 5], sizes, strict=True)) / 300 for i in (0, 5)]
    assert means == pytest.approx(history.train_loss)
