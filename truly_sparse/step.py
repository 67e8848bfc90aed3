"""One training step of a classifier: a single compiled call where possible, otherwise torch's operations."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as modules
from torch.optim import optimizer as optim

from . import reference
from .arguments import is_dense, shown
from .backend import kernels_for
from .cpu.stage import Stage, Trained
from .errors import InvalidArgumentError
from .fuse import chain_of
from .layers import SparseLinear
from .ops import parameters_of, stages_in
from .sparse_layer import SparseLayer

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = (
    *(getattr(modules, f"_global{name}") for name in HOOKS),
    optim._global_optimizer_pre_hooks,
    optim._global_optimizer_post_hooks,
)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # the names of Adam's state


class _Prepared(NamedTuple):
    """What a compiled step works with. Collecting it takes as long as a small layer, so it is kept between steps.

    Attributes:
        lookups: functions, with their argument, that return the objects which decide what a step must do.
        values: the results of the lookups; the preparation is valid as long as they stay the same objects.
        groups: the optimizer's list of groups, and its only group.
        hooks: dictionaries of modules, and the name of a hook dictionary in each, which must stay empty.
        held: the optimizer's list of parameters, and a copy of it.
        layers: the sparse layers.
        stages: what each layer computes.
        parameters: values and bias of each layer, without missing biases.
        weights: values and bias of each layer with their Adam state; None for a missing bias.
        flattens: whether an input is flattened before the first layer.
        dim: dimensions of an input of the first layer.
    """

    lookups: list[tuple[Callable[[Any], Any], Any]]
    values: list[Any]
    groups: tuple[list[dict[str, Any]], dict[str, Any]]
    hooks: list[tuple[dict[str, Any], str]]
    held: tuple[list[nn.Parameter], list[nn.Parameter]]
    layers: list[SparseLayer]
    stages: list[Stage]
    parameters: list[nn.Parameter]
    weights: list[Trained | None]
    flattens: bool
    dim: int


class TrainingStep:
    """A training step, called with inputs and labels: forward, cross-entropy, backward, optimizer.

    In a small truly sparse network, Python, autograd and the optimizer take as long as the arithmetic. A step is
    therefore one compiled call if the model is a single chain of sparse layers (``fuse(sparsify(model))``), with or
    without a flattening of its input, in float32 on a CPU, and the optimizer is torch's Adam or AdamW. The call changes
    the same parameters, their ``.grad`` (overwritten by the next step) and the optimizer's state, equal up to rounding.

    All other steps use torch's operations: the first step, in which the optimizer creates its state; steps with hooks
    on the model, its parameters or the optimizer; labels outside the classes; a loss that is not finite. Hooks inside
    torch's graph (on ``AccumulateGrad`` nodes or saved tensors) are not detected.

    Args:
        model: maps inputs to logits ``[B, classes]``.
        optimizer: holds the model's parameters.

    Raises:
        InvalidArgumentError: the optimizer holds no parameter of the model.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if held.isdisjoint(map(id, model.parameters())):
            raise InvalidArgumentError(
                f"optimizer={type(optimizer).__name__} holds no parameter of model={type(model).__name__}; "
                "build it from this model's parameters, after sparsify and fuse, which return copies"
            )
        self._model, self._optimizer = model, optimizer
        self._prepared: _Prepared | None = None
        self._trainers: dict[bool, Any] = {}  # created at the first compiled step, and the first that records gradients

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that trains it."""
        return self._optimizer

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which makes its own preparation."""
        return vars(self) | {"_prepared": None, "_trainers": {}}

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        """Take one step.

        Args:
            x: inputs, ``[B, ...]``.
            y: labels, int64 ``[B]``.

        Returns:
            The loss before the step, and the number of correct samples. If the loss is not finite, nothing is updated.

        Raises:
            InvalidArgumentError: tensors of another kind or shape.
        """
        if not is_dense(x) or x.dim() == 0:
            raise InvalidArgumentError(f"x={shown(x)}; give a dense tensor of inputs, [B, ...]")
        if not is_dense(y) or y.dtype is not torch.int64 or y.shape != x.shape[:1]:
            raise InvalidArgumentError(f"y={shown(y)}; give a class for each input, int64 [{x.shape[0]}]")
        return self._compiled(x, y) or self._by_torch(x, y)

    def _by_torch(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        value = loss.item()
        if math.isfinite(value):
            self.optimizer.step()
        return value, int((logits.argmax(1) == y).sum())

    def _compiled(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int] | None:
        """Take the step in one compiled call. Return None, without any change, if that is impossible."""
        settings = _adam_settings(self.optimizer)
        if settings is None or not _is_readable(x, y):
            return None
        if self._prepared is None or not _is_valid(self._prepared):
            self._prepared = self._prepare()
        ready = self._prepared
        if ready is None:
            return None
        if ready.flattens and x.dim() > 2:
            x = x.flatten(1)
        if x.dim() != ready.dim or kernels_for(x) is reference:
            return None
        if any([layer.index is not stage.index for layer, stage in zip(ready.layers, ready.stages, strict=True)]):
            self._prepared = ready = ready._replace(stages=stages_in(ready.layers))
        recording = [i for i, layer in enumerate(ready.layers) if layer.record_gradient]
        records = len(recording) > 0
        if records not in self._trainers:
            self._trainers[records] = kernels_for(x).Trainer(trace=records)
        trainer = self._trainers[records]
        done: tuple[float, int] | None = trainer.step(x, y, ready.stages, ready.weights, settings)
        if done is not None:
            for parameter, gradient in zip(ready.parameters, trainer.gradients, strict=True):
                parameter.grad = gradient
            if records:
                for i, trace in zip(recording, trainer.traces(x, recording), strict=True):
                    ready.layers[i].record(*trace)
            torch.autograd.graph.increment_version(ready.parameters)  # autograd detects changes by this number
            vars(self.optimizer)["_opt_called"] = True  # learning-rate schedulers check this
        return done

    def _prepare(self) -> _Prepared | None:
        """Collect all that a compiled step needs. Return None if the step needs torch's operations."""
        chain = chain_of(self.model)
        if chain is None or "forward" in vars(self.model):
            return None
        layers = [layer for name in chain.layers if isinstance(layer := self.model.get_submodule(name), SparseLayer)]
        (group,), state = self.optimizer.param_groups, self.optimizer.state
        if len(layers) < len(chain.layers):
            return None
        if not isinstance(layers[-1], SparseLinear):
            return None
        parameters = parameters_of(layers)
        trained = [parameter for parameter in parameters if parameter is not None]
        held = set(map(id, group["params"]))
        if not all(id(parameter) in held and state.get(parameter) for parameter in trained):
            return None
        called = [self.model.get_submodule(name) for name in chain.names]
        places = self._places(chain.names, layers, group, trained)
        ready = _Prepared(
            lookups=[(place.get, key) for place, key in places],
            values=[place.get(key) for place, key in places],
            groups=(self.optimizer.param_groups, group),
            hooks=[(vars(module), name) for module in (self.model, *called) for name in HOOKS],
            held=(group["params"], list(group["params"])),
            layers=layers,
            stages=stages_in(layers),
            parameters=trained,
            weights=[None if each is None else (each, *(state[each][name] for name in MOMENTS)) for each in parameters],
            flattens=chain.flattens,
            dim=2 if isinstance(layers[0], SparseLinear) else 4,
        )
        return ready if _is_valid(ready) else None

    def _places(
        self, names: tuple[str, ...], layers: list[SparseLayer], group: dict[str, Any], trained: list[nn.Parameter]
    ) -> list[tuple[Any, Any]]:
        """Return the dictionaries, with a key of each, whose entries decide what a step must do."""
        state = self.optimizer.state
        places: list[tuple[Any, Any]] = [(vars(self.optimizer), "state"), (vars(self.optimizer), "param_groups")]
        places += [(group, "params"), (vars(self.model), "forward"), (vars(type(self.model)), "forward")]
        for name in names:
            steps = name.split(".")
            parents = (self.model.get_submodule(".".join(steps[:n])) for n in range(len(steps)))
            places += [(parent._modules, step) for parent, step in zip(parents, steps, strict=True)]
        for layer in layers:
            places += [(layer._parameters, name) for name in ("values", "bias")]
            places += [(vars(layer), name) for name in ("relu", "pool")]
        for parameter in trained:
            places += [(state, parameter), *((state[parameter], name) for name in MOMENTS)]
        return places


def _is_valid(ready: _Prepared) -> bool:
    """Tell whether all objects are still the same, without hooks, and all parameters require gradients."""
    values, (held, before) = [look_up(key) for look_up, key in ready.lookups], ready.held
    same = all(map(operator.is_, values, ready.values)) and len(held) == len(before)
    same = same and ready.groups[0][0] is ready.groups[1]
    if not same or not all(map(operator.is_, held, before)):
        return False
    hooked = any(GLOBAL_HOOKS) or any([module[name] for module, name in ready.hooks])
    hooked = hooked or any([p._backward_hooks or p._post_accumulate_grad_hooks for p in ready.parameters])
    return not hooked and all([p.requires_grad for p in ready.parameters])


def _is_readable(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Tell whether compiled code can read the batch, and no gradient of ``x`` is needed."""
    readable = x.dtype is torch.float32 and x.is_cpu and y.is_cpu and y.numel() > 0
    return readable and torch.is_grad_enabled() and not x.requires_grad


def _adam_settings(optimizer: torch.optim.Optimizer) -> tuple[float, float, float, float, float] | None:
    """Return learning rate, β₁, β₂, ε and AdamW's factor on the weights; None for any other optimizer or option."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or len(optimizer.param_groups) != 1:
        return None
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    if not getattr(vars(optimizer).get("step"), "_wrapped_by_lr_sched", "step" not in vars(optimizer)):
        return None  # the optimizer's step was replaced
    group = optimizer.param_groups[0]
    lr, (beta1, beta2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
    if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"]:
        return None
    plain = all(isinstance(number, float) for number in (lr, beta1, beta2, eps))
    if not plain or (decay and type(optimizer) is torch.optim.Adam):
        return None
    return lr, beta1, beta2, eps, 1 - lr * decay
