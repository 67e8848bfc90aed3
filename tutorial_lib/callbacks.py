"""Callbacks: what ``fit`` does in addition to training. Progress bar, recording of topologies, checkpoints, your own.

A callback overrides some of the methods of :class:`Callback`, which ``fit`` calls during the training. This one
writes CSV scalars. TensorBoard's ``writer.add_scalar("loss", run.loss, run.step)`` goes in the same place::

    class CSVScalars(Callback):
        def __init__(self, path):
            self.path = path

        def after_step(self, run):
            with open(self.path, "a") as file:
                file.write(f"{run.step},{run.loss}\\n")

    fit(model, data, callbacks=[CSVScalars("loss.csv")])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm
from typing_extensions import override

from truly_sparse import Rewirer, TrainingError, sparse_layers
from truly_sparse.progress import progress_stream

from .checkpoint import CheckpointError, load_checkpoint, read_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from .train import History

CHECKPOINT_STEPS = 200
SUMS = ("epoch", "batch", "loss_sum", "correct", "seconds")


@dataclass
class Run:
    """The state of a training, as callbacks see it.

    Attributes:
        model: the network that is trained.
        optimizer: its optimizer.
        driver: changes the topology; None for a fixed one.
        scheduler: changes the learning rate; None for a constant one.
        history: results of the finished epochs, and the topologies.
        steps_per_epoch: optimizer steps in an epoch.
        total_steps: optimizer steps in the whole training.
        epoch: number of the current epoch, from 1.
        batch: batches of this epoch that are done.
        loss: mean cross-entropy of the last batch.
        rewired: whether the last step changed the topology.
        loss_sum: sum of the losses of all samples of this epoch so far.
        correct: number of correct samples of this epoch so far.
        seconds: training time of this epoch so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    driver: Rewirer | None
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    history: History
    steps_per_epoch: int
    total_steps: int
    epoch: int = 1
    batch: int = 0
    loss: float = 0.0
    rewired: bool = False
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    @property
    def step(self) -> int:
        """Optimizer steps that are done."""
        return (self.epoch - 1) * self.steps_per_epoch + self.batch

    def next_epoch(self) -> None:
        """Begin the next epoch, once the results of this one are in the history."""
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training and the sums of the epoch; after an epoch, the start of the next one."""
        if len(self.history.seconds) == self.epoch:
            return {"epoch": self.epoch + 1, "batch": 0, "loss_sum": 0.0, "correct": 0, "seconds": 0.0}
        return {name: getattr(self, name) for name in SUMS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        vars(self).update({name: state[name] for name in SUMS})


class Callback:
    """Base class: every method may be overridden, none has to be."""

    def before_training(self, run: Run) -> None:
        """Called before the first step."""

    def after_step(self, run: Run) -> None:
        """Called after each optimizer step and the rewiring that may follow it."""

    def after_epoch(self, run: Run) -> None:
        """Called after each epoch and its evaluation; ``run.history`` then holds its results."""

    def after_training(self, run: Run) -> None:
        """Called at the end, also after an error or Ctrl-C."""


@dataclass
class Callbacks(Callback):
    """Several callbacks as one; each is called in turn."""

    each: Sequence[Callback]

    @override
    def before_training(self, run: Run) -> None:
        for callback in self.each:
            callback.before_training(run)

    @override
    def after_step(self, run: Run) -> None:
        for callback in self.each:
            callback.after_step(run)

    @override
    def after_epoch(self, run: Run) -> None:
        for callback in self.each:
            callback.after_epoch(run)

    @override
    def after_training(self, run: Run) -> None:
        for callback in self.each:
            callback.after_training(run)


class RecordTopology(Callback):
    """Records the topology before training and after each rewiring in ``run.history.topology``."""

    @override
    def before_training(self, run: Run) -> None:
        self._record(run)  # loading a checkpoint replaces it

    @override
    def after_step(self, run: Run) -> None:
        if run.rewired:
            self._record(run)

    def _record(self, run: Run) -> None:
        layers = sparse_layers(run.model)
        if layers:
            run.history.topology.record(layers, run.step)


class ProgressBar(Callback):
    """Shows the steps that are done and the accuracy of the last epoch."""

    bar: tqdm[Any] | None = None

    @override
    def before_training(self, run: Run) -> None:
        options: dict[str, Any] = {"file": progress_stream(), "ncols": 100, "mininterval": 0.5, "unit": "step"}
        self.bar = tqdm(total=run.total_steps, initial=run.step, **options)

    @override
    def after_step(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.update()

    @override
    def after_epoch(self, run: Run) -> None:
        epochs = run.total_steps // run.steps_per_epoch
        if self.bar is not None:
            self.bar.set_postfix_str(f"epoch {run.epoch}/{epochs}, test {run.history.test_accuracy[-1]:.2f}%")

    @override
    def after_training(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.close()


@dataclass
class Checkpoint(Callback):
    """Writes a file every 200 steps and after each epoch, and continues from it if it exists.

    A checkpoint waits while a gradient is recorded for the next rewiring, because no ``state_dict`` holds that
    gradient.

    Attributes:
        path: the file.
        settings: of the run; a file of a run with other settings is refused.
    """

    path: Path
    settings: dict[str, Any]
    due: bool = field(default=False, init=False)

    @override
    def before_training(self, run: Run) -> None:
        if not self.path.exists():
            return
        saved = read_checkpoint(self.path)["parts"].get("settings")
        if not isinstance(saved, dict):
            raise CheckpointError(
                f"{self.path} was not written by fit(); load it with load_checkpoint, or choose another file"
            )
        other = [f"{name}={saved.get(name)!r}, now {v!r}" for name, v in self.settings.items() if saved.get(name) != v]
        if other:
            raise CheckpointError(
                f"{self.path} comes from a run with {'; '.join(other)}; "
                "repeat that run's settings, or choose another file"
            )
        load_checkpoint(self.path, **self._parts(run))

    @override
    def after_step(self, run: Run) -> None:
        self.due |= run.step % CHECKPOINT_STEPS == 0
        if self.due and self._complete(run):
            self.due = False
            self._save(run)

    @override
    def after_epoch(self, run: Run) -> None:
        if self._complete(run) or run.step == run.total_steps:
            self._save(run)

    def _complete(self, run: Run) -> bool:
        return run.driver is None or run.driver.at_rest

    def _parts(self, run: Run) -> dict[str, Any]:
        parts = {"model": run.model, "optimizer": run.optimizer, "scheduler": run.scheduler, "driver": run.driver}
        return {name: part for name, part in parts.items() if part is not None} | {"history": run.history, "at": run}

    def _save(self, run: Run) -> None:
        for name, parameter in run.model.named_parameters():  # the loss would show it only a step later
            if not parameter.isfinite().all():
                raise TrainingError(
                    f"{name!r} is not finite after step {run.step} (epoch {run.epoch}); lower the learning rate"
                )
        save_checkpoint(self.path, settings=self.settings, **self._parts(run))
