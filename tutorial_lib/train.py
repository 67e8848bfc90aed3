"""Training and evaluation: one visible loop."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse import InvalidArgumentError, PerWeightAdam, Rewirer, TrainingError, TrainingStep, sparse_layers
from truly_sparse.arguments import check_choice, check_count, require
from truly_sparse.interface import check_has_numbers
from truly_sparse.recipes import Recipe, describe
from truly_sparse.topology import generator_of

from .callbacks import Callback, Callbacks, Checkpoint, ProgressBar, RecordTopology, Run
from .data import Digits
from .project import check_path
from .recorder import TopologyRecorder

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"fused": True}),
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "sgd": (torch.optim.SGD, {"fused": True, "momentum": 0.9}),
    "adam per weight": (PerWeightAdam, {}),
}
SCHEDULES = ("constant", "onecycle")
EVALUATION_BATCH = 500
EPOCH_COLUMNS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")


@dataclass
class History:
    """The results of each epoch, and every topology of the run.

    Attributes:
        train_loss: mean cross-entropy over the epoch's batches, during training.
        train_accuracy: percent, during training.
        test_loss: mean cross-entropy on the test set after the epoch.
        test_accuracy: percent, after the epoch.
        seconds: training time of the epoch without evaluation and callbacks.
        topology: the topology before training and after each rewiring; empty for a dense model.
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    topology: TopologyRecorder = field(default_factory=TopologyRecorder)

    def table(self) -> pd.DataFrame:
        """Return losses, accuracies and seconds, one row per epoch."""
        index = pd.RangeIndex(1, len(self.seconds) + 1, name="epoch")
        return pd.DataFrame({name: getattr(self, name) for name in EPOCH_COLUMNS}, index=index)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain values and tensors."""
        return {name: list(getattr(self, name)) for name in EPOCH_COLUMNS} | {"topology": self.topology.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state.

        Raises:
            InvalidArgumentError: ``state`` was not made by :meth:`state_dict`.
        """
        whole = state.keys() >= {"topology", *EPOCH_COLUMNS} and all(isinstance(state[c], list) for c in EPOCH_COLUMNS)
        require(whole, "state", state, "give what state_dict() returned")
        self.topology.load_state_dict(state["topology"])
        for name in EPOCH_COLUMNS:
            setattr(self, name, list(state[name]))


def fit(
    model: nn.Module,
    data: Digits,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    batch_size: int = 64,
    optimizer: str = "adam",
    schedule: str = "constant",
    sparsity: Rewirer | Recipe | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train ``model`` in place and evaluate it after every epoch.

    Args:
        model: maps images to logits. Its 4-D weights are put into ``channels_last``, the faster format.
        data: the digits.
        epochs: passes over the training images.
        lr: learning rate; its peak under ``"onecycle"``.
        batch_size: images per step; the last batch of an epoch may be smaller.
        optimizer: ``"adam"``, ``"adamw"``, ``"sgd"`` (momentum 0.9) or ``"adam per weight"`` (:class:`PerWeightAdam`).
        schedule: ``"constant"`` or ``"onecycle"``.
        sparsity: a recipe such as ``RigL()``; or a driver of this model such as a :class:`DynamicSparsity`. The
            driver's optimizer is then used in place of ``optimizer``; under ``"onecycle"``, ``lr`` must be its own.
        seed: seed of the batch order, of torch's global generator (dropout) and of the recipe.
        device: where to train; model and data are moved there.
        progress: whether to show a progress bar.
        checkpoint: file written every 200 steps and after each epoch. If it exists, training continues from it and ends
            with the same bits as an uninterrupted run (on a CPU with the same number of threads).
        callbacks: see :mod:`tutorial_lib.callbacks`.

    Raises:
        InvalidArgumentError: an argument outside its range, or labels for which the model has no logit.
        TrainingError: the loss, or a weight to be saved or ranked, is not finite.
        CheckpointError: the checkpoint is damaged or comes from a run with other settings.
    """
    epochs = check_count("epochs", epochs, least=1)
    batch_size = check_count("batch_size", batch_size, least=1)
    _check_fit(model, lr, optimizer, schedule, sparsity, device)
    torch.manual_seed(operator.index(seed))
    data = data.to(device)
    model.to(device)
    if not isinstance(sparsity, Rewirer):  # a driver's optimizer may hold state in the present format
        model.to(memory_format=torch.channels_last)
    _check_labels(model, data)
    settings = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "optimizer": optimizer, "schedule": schedule}
    settings |= {"sparsity": describe(sparsity.settings() if isinstance(sparsity, Rewirer) else sparsity), "seed": seed}
    run = _prepare(model, epochs, math.ceil(len(data.train_x) / batch_size), lr, optimizer, schedule, sparsity, seed)
    extras: list[Callback] = [RecordTopology(), *callbacks, *([ProgressBar()] if progress else [])]
    if checkpoint is not None:  # after the recording, which it saves
        extras.insert(1, Checkpoint(check_path("checkpoint", checkpoint), settings | {"data": data.sha256()}))
    _train(run, data, batch_size, seed, Callbacks(extras))
    return run.history


def _train(run: Run, data: Digits, batch_size: int, seed: int, callbacks: Callback) -> None:
    """Train for all epochs, or for those that a checkpoint has left; then end the callbacks, also after an error."""
    try:
        _loop(run, data, batch_size, seed, callbacks)
    finally:
        callbacks.after_training(run)


def _loop(run: Run, data: Digits, batch_size: int, seed: int, callbacks: Callback) -> None:
    """The training loop: batches, step, rewire, evaluate, record."""
    step = TrainingStep(run.model, run.optimizer)
    order = generator_of(seed)
    callbacks.before_training(run)  # may load a checkpoint: the run then begins in the middle

    for epoch in range(1, run.total_steps // run.steps_per_epoch + 1):
        batches = torch.randperm(len(data.train_x), generator=order).to(data.train_x.device).split(batch_size)
        if epoch < run.epoch:
            continue  # done before the checkpoint; only its order is drawn
        run.model.train()
        for batch in batches[run.batch :]:
            start = time.perf_counter()
            x, y = data.train_x.index_select(0, batch), data.train_y.index_select(0, batch)
            run.loss, correct = step(x, y)  # zero_grad, forward, cross-entropy, backward, optimizer.step
            if not math.isfinite(run.loss):
                raise TrainingError(f"the loss is {run.loss} at step {run.step + 1} (epoch {epoch}); lower lr")
            run.rewired = run.driver is not None and _rewire(run)
            if run.scheduler is not None:
                run.scheduler.step()
            run.loss_sum += run.loss * len(batch)
            run.correct += correct
            run.batch += 1
            run.seconds += time.perf_counter() - start
            callbacks.after_step(run)
        _record_epoch(run, data)
        callbacks.after_epoch(run)
        run.next_epoch()


def _rewire(run: Run) -> bool:
    """Count a step of the driver, which rewires when it is time. Return whether it did."""
    try:
        return run.driver is not None and run.driver.step()
    except TrainingError as error:
        raise TrainingError(f"at step {run.step + 1} (epoch {run.epoch}): {error}") from error


def _record_epoch(run: Run, data: Digits) -> None:
    """Evaluate the model and append the results of the epoch to the history."""
    history, images = run.history, len(data.train_x)
    accuracy, test_loss = evaluate(run.model, data)
    history.seconds.append(run.seconds)
    history.train_loss.append(run.loss_sum / images)
    history.train_accuracy.append(100 * run.correct / images)
    history.test_accuracy.append(accuracy)
    history.test_loss.append(test_loss)


@torch.no_grad()
def evaluate(model: nn.Module, data: Digits) -> tuple[float, float]:
    """Return (accuracy in percent, mean cross-entropy) of ``model`` on the test set. Its mode is restored.

    Raises:
        InvalidArgumentError: the model does not accept the images, or has no logit for a label.
    """
    _check_labels(model, data)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss_sum, correct = 0.0, 0
    for x, y in zip(data.test_x.split(EVALUATION_BATCH), data.test_y.split(EVALUATION_BATCH), strict=True):
        logits, y = model(x.to(device)), y.to(device)
        loss_sum += F.cross_entropy(logits, y, reduction="sum").item()
        correct += int((logits.argmax(1) == y).sum())
    model.train(was_training)
    return 100 * correct / len(data.test_y), loss_sum / len(data.test_y)


def _prepare(
    model: nn.Module,
    epochs: int,
    steps_per_epoch: int,
    lr: float,
    optimizer: str,
    schedule: str,
    sparsity: Rewirer | Recipe | None,
    seed: int,
) -> Run:
    """Build the optimizer, the driver and the scheduler of a run."""
    total_steps = epochs * steps_per_epoch
    if isinstance(sparsity, Rewirer):
        opt, driver = sparsity.optimizer, sparsity
    else:
        kind, extra = OPTIMIZERS[optimizer]
        opt, driver = kind(model.parameters(), lr=lr, **extra), None
        if sparsity is not None:
            driver = sparsity.attach(model, opt, steps_per_epoch=steps_per_epoch, total_steps=total_steps, seed=seed)
    scheduler = None if schedule == "constant" else _one_cycle(opt, lr, total_steps)
    return Run(model, opt, driver, scheduler, History(), steps_per_epoch, total_steps)


def _one_cycle(optimizer: torch.optim.Optimizer, lr: float, total_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if any(group["lr"] != lr for group in optimizer.param_groups):
        raise InvalidArgumentError(
            f"schedule='onecycle' would change the learning rate of the driver's optimizer to lr={lr}; "
            "pass its own as lr="
        )
    cycled = all("momentum" in group or "betas" in group for group in optimizer.param_groups)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=total_steps, cycle_momentum=cycled)


def _check_fit(
    model: nn.Module,
    lr: float,
    optimizer: str,
    schedule: str,
    sparsity: Rewirer | Recipe | None,
    device: str | torch.device,
) -> None:
    require(torch.device(device).type != "meta", "device", device, "nothing can be computed there; use 'cpu'")
    require(0 < lr < math.inf, "lr", lr, "use a positive number such as 1e-3")
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_choice("schedule", schedule, SCHEDULES)
    if isinstance(sparsity, Rewirer) and sparsity.layers != sparse_layers(model):
        raise InvalidArgumentError(
            "sparsity drives the layers of another model; build it from the model that is trained"
        )


@torch.no_grad()
def _check_labels(model: nn.Module, data: Digits) -> None:
    """Check with one image that the model accepts it and returns a logit for each label."""
    if next(model.parameters(), None) is None:
        raise InvalidArgumentError(f"model={type(model).__name__} has no parameters; give one that can be trained")
    check_has_numbers(model)
    was_training, image = model.training, data.test_x[:1].to(next(model.parameters()).device)
    try:
        logits = model.eval()(image)
        fits = torch.is_tensor(logits) and logits.dim() == 2
        require(fits, "model", model, "it must return logits [B, classes]; use one that does")
    except (RuntimeError, TypeError, IndexError) as error:
        raise InvalidArgumentError(
            f"model={type(model).__name__} does not take images {image.dtype} {tuple(image.shape)} "
            f"({str(error)[:200]}); use one that maps them to logits"
        ) from error
    finally:
        model.train(was_training)
    classes = logits.shape[1]
    for name in ("train_y", "test_y"):
        low, high = (int(v) for v in getattr(data, name).aminmax())
        if low < 0 or high >= classes:
            raise InvalidArgumentError(
                f"{name} holds labels from {low} to {high}, but model={type(model).__name__} has {classes} outputs; "
                f"use 0 to {classes - 1}"
            )
