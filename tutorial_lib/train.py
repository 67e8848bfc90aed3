"""Training and evaluation: one visible loop."""

from __future__ import annotations

import math
import numbers
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .data import Digits
from .dst import DynamicSparsity, Recipe
from .errors import InvalidArgumentError, TrainingError
from .interface import sparse_layers
from .topology import to_mask

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
SCHEDULES = ("constant", "onecycle")
EVALUATION_BATCH = 500


@dataclass
class History:
    """What happened in each epoch; position 0 of ``masks`` is the state before training.

    Attributes:
        train_loss: mean cross-entropy over the epoch's batches, while training.
        train_accuracy: percent, while training.
        test_loss: mean cross-entropy on the test set after the epoch.
        test_accuracy: percent, after the epoch.
        seconds: training time of the epoch, evaluation left out.
        shapes: dense shape of each sparse layer by name.
        masks: per moment, each sparse layer's mask as packed bits (``numpy.packbits``).
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    masks: list[dict[str, np.ndarray]] = field(default_factory=list)

    def record_masks(self, model: nn.Module) -> None:
        """Append the masks of the model's sparse layers as they are now."""
        layers = sparse_layers(model)
        self.shapes = {name: layer.dense_shape for name, layer in layers.items()}
        self.masks.append(
            {
                name: np.packbits(to_mask(layer.active(), layer.dense_shape).cpu().numpy())
                for name, layer in layers.items()
            }
        )

    def mask(self, epoch: int, layer: str) -> np.ndarray:
        """Return a layer's boolean mask after ``epoch`` (0: before training), in the dense weight's shape.

        Raises:
            InvalidArgumentError: no such layer or epoch.
        """
        if layer not in self.shapes:
            raise InvalidArgumentError(f"no sparse layer {layer!r}; there are {', '.join(self.shapes) or 'none'}")
        if not 0 <= epoch < len(self.masks):
            raise InvalidArgumentError(f"epoch={epoch}; masks were recorded for 0 to {len(self.masks) - 1}")
        shape = self.shapes[layer]
        return np.unpackbits(self.masks[epoch][layer], count=math.prod(shape)).astype(bool).reshape(shape)

    def table(self) -> pd.DataFrame:
        """Return losses, accuracies and seconds, one row per epoch."""
        columns = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
        index = pd.RangeIndex(1, len(self.seconds) + 1, name="epoch")
        return pd.DataFrame({name: getattr(self, name) for name in columns}, index=index)


def fit(
    model: nn.Module,
    data: Digits,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    batch_size: int = 64,
    optimizer: str = "adam",
    schedule: str = "constant",
    sparsity: DynamicSparsity | Recipe | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> History:
    """Train ``model`` in place and evaluate it after every epoch.

    Args:
        model: maps images to logits. Its 4-D weights are put into ``channels_last``, the faster format here.
        data: the digits.
        epochs: passes over the training images.
        lr: learning rate; the peak of it under ``"onecycle"``.
        batch_size: images per step; the last batch of an epoch may be smaller.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        schedule: ``"constant"`` or ``"onecycle"``.
        sparsity: a recipe such as ``RigL()``; or a :class:`DynamicSparsity` of this model, whose optimizer is then
            used in place of ``optimizer`` and ``lr``, and whose ``until`` is its own affair.
        seed: seed of the batch order, of torch's global generator (dropout) and of the recipe.
        device: where to train; model and data are moved there.
        progress: whether to show a progress bar.

    Raises:
        InvalidArgumentError: an argument outside its range, labels that the model has no logit for, or a device
            that is not there.
        TrainingError: the loss is not finite; the message says at which step.
    """
    _check_fit(epochs, lr, batch_size, optimizer, schedule, device)
    _check_sparsity_of(model, sparsity)
    torch.manual_seed(seed)
    data = data.to(device)
    model.to(device)
    if not isinstance(sparsity, DynamicSparsity):  # whose optimizer may hold state in the weights' present format
        model.to(memory_format=torch.channels_last)
    _check_labels(model, data)
    steps_per_epoch = math.ceil(len(data.train_x) / batch_size)
    total_steps = epochs * steps_per_epoch
    if isinstance(sparsity, DynamicSparsity):
        opt = sparsity.optimizer
    else:
        opt = _make_optimizer(optimizer, model, lr, device)
    if isinstance(sparsity, Recipe):
        sparsity = sparsity.attach(model, opt, steps_per_epoch=steps_per_epoch, total_steps=total_steps, seed=seed)
    scheduler = _make_schedule(schedule, opt, lr, total_steps)
    order = torch.Generator().manual_seed(seed)
    history = History()
    history.record_masks(model)
    bar = tqdm(total=total_steps, disable=not progress, file=sys.stdout, ncols=100, mininterval=0.5, unit="step")

    for epoch in range(1, epochs + 1):
        model.train()
        start, loss_sum, correct = time.perf_counter(), 0.0, 0
        for batch in torch.randperm(len(data.train_x), generator=order).to(device).split(batch_size):
            x, y = data.train_x[batch], data.train_y[batch]
            opt.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            loss_value = loss.item()
            if not math.isfinite(loss_value):
                raise TrainingError(f"the loss is {loss_value} at step {bar.n + 1} (epoch {epoch}); lower lr={lr}")
            opt.step()
            if sparsity is not None:
                sparsity.step()
            if scheduler is not None:
                scheduler.step()
            loss_sum += loss_value * len(batch)
            correct += (logits.argmax(1) == y).sum().item()
            bar.update()
        history.seconds.append(time.perf_counter() - start)
        history.train_loss.append(loss_sum / len(data.train_x))
        history.train_accuracy.append(100 * correct / len(data.train_x))
        accuracy, test_loss = evaluate(model, data)
        history.test_accuracy.append(accuracy)
        history.test_loss.append(test_loss)
        history.record_masks(model)
        bar.set_postfix_str(f"epoch {epoch}/{epochs}, test {accuracy:.2f}%")
    bar.close()
    return history


@torch.no_grad()
def evaluate(model: nn.Module, data: Digits) -> tuple[float, float]:
    """Return (accuracy in percent, mean cross-entropy) of ``model`` on the test set; its mode is left as it was."""
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


def _make_optimizer(name: str, model: nn.Module, lr: float, device: str) -> torch.optim.Optimizer:
    extra = {"momentum": 0.9} if name == "sgd" else {}
    return OPTIMIZERS[name](model.parameters(), lr=lr, fused=torch.device(device).type in ("cpu", "cuda"), **extra)


def _make_schedule(
    name: str, optimizer: torch.optim.Optimizer, lr: float, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    if name == "constant":
        return None
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=total_steps)


def _check_fit(epochs: int, lr: float, batch_size: int, optimizer: str, schedule: str, device: str) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise InvalidArgumentError(f"{name}={value!r}; use a whole number of at least 1")
    if not isinstance(lr, numbers.Real) or not 0 < lr < math.inf:
        raise InvalidArgumentError(f"lr={lr!r}; use a positive number such as 1e-3")
    if optimizer not in OPTIMIZERS:
        raise InvalidArgumentError(f"optimizer={optimizer!r}; use one of {', '.join(OPTIMIZERS)}")
    if schedule not in SCHEDULES:
        raise InvalidArgumentError(f"schedule={schedule!r}; use one of {', '.join(SCHEDULES)}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError(f"device={device!r}, but torch sees no GPU here; use device='cpu'")


def _check_sparsity_of(model: nn.Module, sparsity: DynamicSparsity | Recipe | None) -> None:
    if not isinstance(sparsity, (DynamicSparsity, Recipe, type(None))):
        raise InvalidArgumentError(f"sparsity={sparsity!r}; use a recipe such as RigL(), a DynamicSparsity, or None")
    if isinstance(sparsity, DynamicSparsity) and sparsity.layers != sparse_layers(model):
        raise InvalidArgumentError(
            "sparsity drives the layers of another model; build it from the model that is trained"
        )


@torch.no_grad()
def _check_labels(model: nn.Module, data: Digits) -> None:
    was_training = model.training
    classes = model.eval()(data.train_x[:1]).shape[1]
    model.train(was_training)
    for name in ("train_y", "test_y"):
        low, high = (int(v) for v in getattr(data, name).aminmax())
        if low < 0 or high >= classes:
            raise InvalidArgumentError(
                f"{name} holds labels from {low} to {high}, but the model has {classes} outputs; use 0 to {classes - 1}"
            )
