"""Training and evaluation: one visible loop."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from truly_sparse.arguments import check_choice, require
from truly_sparse.dst import Rewirer
from truly_sparse.errors import InvalidArgumentError, TrainingError
from truly_sparse.interface import check_has_numbers, sparse_layers
from truly_sparse.optim import PerWeightAdam
from truly_sparse.recipes import Recipe, describe
from truly_sparse.step import TrainingStep

from .checkpoint import CheckpointError, load_checkpoint, read_checkpoint, save_checkpoint
from .data import Digits
from .project import check_path
from .recorder import TopologyRecorder

OPTIMIZERS = {
    "adam": (torch.optim.Adam, {"fused": True}),
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "sgd": (torch.optim.SGD, {"fused": True, "momentum": 0.9}),
    "adam per weight": (PerWeightAdam, {}),
}
SCHEDULES = ("constant", "onecycle")
EVALUATION_BATCH = 500
CHECKPOINT_STEPS = 200
EPOCH_COLUMNS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")


@dataclass
class History:
    """What happened in each epoch, and every topology of the run.

    Attributes:
        train_loss: mean cross-entropy over the epoch's batches, while training.
        train_accuracy: percent, while training.
        test_loss: mean cross-entropy on the test set after the epoch.
        test_accuracy: percent, after the epoch.
        seconds: training time of the epoch, evaluation left out.
        topology: the topology before training and after each rewiring; empty for a dense model.
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    topology: TopologyRecorder = field(default_factory=TopologyRecorder)

    def table(self) -> pd.DataFrame:
        """Return losses, accuracies and seconds, one row per epoch.

        Raises:
            InvalidArgumentError: they are not equally long.
        """
        for name in EPOCH_COLUMNS:
            held = getattr(self, name)
            require(len(held) == len(self.seconds), name, held, f"give one for each of {len(self.seconds)} epochs")
        index = pd.RangeIndex(1, len(self.seconds) + 1, name="epoch")
        return pd.DataFrame({name: getattr(self, name) for name in EPOCH_COLUMNS}, index=index)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain values and tensors."""
        return {name: list(getattr(self, name)) for name in EPOCH_COLUMNS} | {"topology": self.topology.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            InvalidArgumentError: ``state`` is not what :meth:`state_dict` returned.
        """
        whole = state.keys() >= {"topology", *EPOCH_COLUMNS} and all(isinstance(state[c], list) for c in EPOCH_COLUMNS)
        require(whole, "state", state, "give what state_dict() returned")
        self.topology.load_state_dict(state["topology"])
        for name in EPOCH_COLUMNS:
            setattr(self, name, list(state[name]))


@dataclass
class _Progress:
    """Where a run stands: ``batch`` batches of ``epoch`` are done, with these sums."""

    epoch: int = 1
    batch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


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
) -> History:
    """Train ``model`` in place and evaluate it after every epoch. Each batch is one :class:`TrainingStep`.

    Args:
        model: maps images to logits. Its 4-D weights are put into ``channels_last``, the faster format here.
        data: the digits.
        epochs: passes over the training images.
        lr: learning rate; the peak of it under ``"onecycle"``.
        batch_size: images per step; the last batch of an epoch may be smaller.
        optimizer: ``"adam"``, ``"adamw"``, ``"sgd"`` (momentum 0.9) or ``"adam per weight"``
            (:class:`PerWeightAdam`).
        schedule: ``"constant"`` or ``"onecycle"``.
        sparsity: a recipe such as ``RigL()``; or a :class:`Rewirer` of this model, such as a
            :class:`DynamicSparsity`, whose optimizer is then used in place of ``optimizer`` (under ``"onecycle"``,
            ``lr`` has to be its own), and whose ``until`` is its own affair.
        seed: seed of the batch order, of torch's global generator (dropout) and of the recipe.
        device: where to train; model and data are moved there.
        progress: whether to show a progress bar.
        checkpoint: file that is written every 200 steps and after each epoch (where growth looks at several batches,
            as soon as a rewiring is done). If it is there already, training goes on from it and ends with the same
            bits as a run that was never stopped, on a CPU with the same number of threads; a finished run returns at
            once.

    Raises:
        InvalidArgumentError: an argument outside its range, labels that the model has no logit for, or a device
            that is not there.
        TrainingError: the loss, or a weight that is about to be saved or ranked, is not finite; the message says at
            which step. The checkpoint then is the last good one.
        CheckpointError: the checkpoint is damaged or comes from a run with other settings.
    """
    _check_fit(epochs, lr, batch_size, optimizer, schedule, seed, device)
    checkpoint = None if checkpoint is None else check_path("checkpoint", checkpoint)
    _check_sparsity_of(model, sparsity)
    _check_model(model)
    torch.manual_seed(seed)
    data = data.to(device)
    model.to(device)
    if not isinstance(sparsity, Rewirer):  # whose optimizer may hold state in the weights' present format
        model.to(memory_format=torch.channels_last)
    _check_labels(model, data)
    steps_per_epoch = math.ceil(len(data.train_x) / batch_size)
    total_steps = epochs * steps_per_epoch
    settings = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "optimizer": optimizer, "schedule": schedule}
    settings |= {"sparsity": _describe(sparsity), "seed": seed}
    if checkpoint is not None:
        settings["data"] = data.sha256()
    if isinstance(sparsity, Rewirer):
        opt = sparsity.optimizer
    else:
        kind, extra = OPTIMIZERS[optimizer]
        opt = kind(model.parameters(), lr=lr, **extra)
    if isinstance(sparsity, Recipe):
        sparsity = sparsity.attach(model, opt, steps_per_epoch=steps_per_epoch, total_steps=total_steps, seed=seed)
    scheduler = _make_schedule(schedule, opt, lr, total_steps)
    step = TrainingStep(model, opt)
    order = torch.Generator().manual_seed(seed)
    history, at = History(), _Progress()
    parts = {"model": model, "optimizer": opt, "scheduler": scheduler, "driver": sparsity, "history": history, "at": at}
    parts = {name: part for name, part in parts.items() if part is not None}
    if checkpoint is not None and checkpoint.exists():
        _resume(checkpoint, parts, settings)
    else:
        _record_topology(history, model, 0)
    save_due = False  # it waits for a moment at which nothing is on its way
    done = (at.epoch - 1) * steps_per_epoch + at.batch
    bar = tqdm(
        total=total_steps, initial=done, disable=not progress, file=sys.stdout, ncols=100, mininterval=0.5, unit="step"
    )

    for epoch in range(1, epochs + 1):
        batches = torch.randperm(len(data.train_x), generator=order).to(device).split(batch_size)
        if epoch < at.epoch:
            continue  # done before the checkpoint; its order was drawn all the same
        model.train()
        start = time.perf_counter() - at.seconds
        for batch in batches[at.batch :]:
            loss, correct = step(data.train_x.index_select(0, batch), data.train_y.index_select(0, batch))
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at step {done + 1} (epoch {epoch}); lower lr={lr}")
            done += 1
            if sparsity is not None and _rewired(sparsity, done, epoch):
                _record_topology(history, model, done)
            if scheduler is not None:
                scheduler.step()
            at.loss_sum += loss * len(batch)
            at.correct += correct
            at.batch += 1
            bar.update()
            save_due |= checkpoint is not None and done % CHECKPOINT_STEPS == 0
            if save_due and (sparsity is None or sparsity.at_rest):
                save_due = False
                at.seconds = time.perf_counter() - start
                _check_finite(model, done, epoch)
                save_checkpoint(checkpoint, settings=settings, **parts)
                start = time.perf_counter() - at.seconds  # saving is no training time
        history.seconds.append(time.perf_counter() - start)
        history.train_loss.append(at.loss_sum / len(data.train_x))
        history.train_accuracy.append(100 * at.correct / len(data.train_x))
        accuracy, test_loss = evaluate(model, data)
        history.test_accuracy.append(accuracy)
        history.test_loss.append(test_loss)
        at.load_state_dict(_Progress(epoch + 1).state_dict())
        if checkpoint is not None and (sparsity is None or sparsity.at_rest or epoch == epochs):
            _check_finite(model, done, epoch)
            save_checkpoint(checkpoint, settings=settings, **parts)
        bar.set_postfix_str(f"epoch {epoch}/{epochs}, test {accuracy:.2f}%")
    bar.close()
    return history


def _rewired(sparsity: Rewirer, step: int, epoch: int) -> bool:
    try:
        return sparsity.step()
    except TrainingError as error:
        raise TrainingError(f"at step {step} (epoch {epoch}): {error}") from error


def _check_finite(model: nn.Module, step: int, epoch: int) -> None:
    """Refuse to save what cannot be gone on with: the loss shows it only a step later."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise TrainingError(f"{name!r} is not finite after step {step} (epoch {epoch}); lower the learning rate")


def _record_topology(history: History, model: nn.Module, step: int) -> None:
    layers = sparse_layers(model)
    if layers:
        history.topology.record(layers, step)


def _resume(path: str | Path, parts: dict[str, Any], settings: dict[str, Any]) -> None:
    """Load a checkpoint of the same run into its parts; another run's is refused before anything is touched."""
    saved = read_checkpoint(path)["parts"].get("settings")
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} was not written by fit(); load it with load_checkpoint, or choose another file")
    other = [
        f"{name}={saved.get(name)!r}, now {value!r}" for name, value in settings.items() if saved.get(name) != value
    ]
    if other:
        raise CheckpointError(
            f"{path} comes from a run with {'; '.join(other)}; repeat that run's settings, or choose another file"
        )
    load_checkpoint(path, **parts)


def _describe(sparsity: Rewirer | Recipe | None) -> str:
    """Return a text that differs where recipes differ."""
    return describe(sparsity.settings() if isinstance(sparsity, Rewirer) else sparsity)


@torch.no_grad()
def evaluate(model: nn.Module, data: Digits) -> tuple[float, float]:
    """Return (accuracy in percent, mean cross-entropy) of ``model`` on the test set; its mode is left as it was.

    Raises:
        InvalidArgumentError: the model does not take the images, or has no logit for a label.
    """
    _check_model(model)
    _check_labels(model, data)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss_sum, correct = 0.0, 0
    for x, y in zip(data.test_x.split(EVALUATION_BATCH), data.test_y.split(EVALUATION_BATCH), strict=True):
        logits, y = model(x.to(device)), y.to(device)
        loss_sum += F.cross_entropy(logits, y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
    model.train(was_training)
    return 100 * correct / len(data.test_y), loss_sum / len(data.test_y)


def _make_schedule(
    name: str, optimizer: torch.optim.Optimizer, lr: float, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    if name == "constant":
        return None
    if any(group["lr"] != lr for group in optimizer.param_groups):
        raise InvalidArgumentError(
            f"schedule={name!r} would take the driver's optimizer to lr={lr}; pass its own learning rate as lr="
        )
    cycled = all("momentum" in group or "betas" in group for group in optimizer.param_groups)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=total_steps, cycle_momentum=cycled)


def _check_fit(
    epochs: int, lr: float, batch_size: int, optimizer: str, schedule: str, seed: int, device: str | torch.device
) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        require(value >= 1, name, value, "use a whole number of at least 1")
    require(0 < lr < math.inf, "lr", lr, "use a positive number such as 1e-3")
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_choice("schedule", schedule, SCHEDULES)
    require(torch.device(device).type != "meta", "device", device, "nothing can be computed there; use 'cpu'")


def _check_sparsity_of(model: nn.Module, sparsity: Rewirer | Recipe | None) -> None:
    if isinstance(sparsity, Rewirer) and sparsity.layers != sparse_layers(model):
        raise InvalidArgumentError(
            "sparsity drives the layers of another model; build it from the model that is trained"
        )


def _check_model(model: nn.Module) -> None:
    if next(model.parameters(), None) is None:
        raise InvalidArgumentError(f"model={type(model).__name__} has no parameters; give one that can be trained")
    check_has_numbers(model)


@torch.no_grad()
def _check_labels(model: nn.Module, data: Digits) -> None:
    """Try one image: that the model takes it, and has a logit for each label."""
    was_training, image = model.training, data.test_x[:1].to(next(model.parameters()).device)
    try:
        logits = model.eval()(image)
        require(
            torch.is_tensor(logits) and logits.dim() == 2, "model", model, "it has to return logits; use one that does"
        )
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
