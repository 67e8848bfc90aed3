"""One step of training a classifier: a single compiled call where that is possible, else torch's loop."""

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
from .layers import SparseLayer, SparseLinear, parameters_of, stages_of

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = (
    *(getattr(modules, f"_global{name}") for name in HOOKS),
    optim._global_optimizer_pre_hooks,
    optim._global_optimizer_post_hooks,
)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # the names of Adam's state


class _Found(NamedTuple):
    """What a compiled step works with. To look for it takes as long as a small layer; to compare it does not.

    Attributes:
        places: how to look up, and by which key, whatever decides what a step has to do.
        things: what stood there.
        groups: the optimizer's list of groups, and the one that was in it.
        hooks: a module's dictionary, and the name of one in it that is empty while nobody watches.
        held: the list of the optimizer's parameters, and a copy of it.
        stages: the layers as kernels see them.
        parameters: values and bias of each layer that are there.
        weights: each with Adam's state of it.
        dim: dimensions of an input.
    """

    places: list[tuple[Callable[[Any], Any], Any]]
    things: list[Any]
    groups: tuple[list[dict], dict]
    hooks: list[tuple[dict, str]]
    held: tuple[list[nn.Parameter], list[nn.Parameter]]
    stages: list[Stage]
    parameters: list[nn.Parameter]
    weights: list[Trained | None]
    dim: int


class TrainingStep:
    """A step of training, to be called with inputs and their classes: forward, cross-entropy, backward, optimizer.

    Python, autograd and an optimizer take as long as all the arithmetic of a small truly sparse network. Where the
    model is nothing but a chain of sparse layers (``fuse(sparsify(model))``), float32 on a CPU, and the optimizer
    torch's Adam or AdamW, a step is therefore one compiled call. It does the same to the same parameters, their
    ``.grad`` (overwritten by the next step) and the optimizer's state, equal to rounding.

    torch's own loop does the rest: the first step, in which the optimizer makes its state; steps whose gradients a
    layer records; everything where somebody has hooks; labels that are no class; a loss that is not finite. Only what
    lies within torch's graph is not looked for: hooks of ``AccumulateGrad`` nodes and of saved tensors.

    Args:
        model: maps inputs to logits ``[B, classes]``.
        optimizer: holds its parameters.

    Raises:
        InvalidArgumentError: it holds none of them.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if held.isdisjoint(map(id, model.parameters())):
            raise InvalidArgumentError(
                f"optimizer={type(optimizer).__name__} holds no parameter of model={type(model).__name__}; "
                "build it from this model's parameters, after sparsify and fuse, which return copies"
            )
        self._model, self._optimizer = model, optimizer
        self._found: _Found | None = None
        self._trainer: Any = None  # made when the kernels are first needed

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What trains it."""
        return self._optimizer

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; it looks for itself."""
        return vars(self) | {"_found": None, "_trainer": None}

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        """Take one step with inputs ``x`` of the classes ``y``, int64 ``[B]``.

        Returns:
            The loss before the step, and how many samples were right. Where the loss is not finite, nothing is
            updated.

        Raises:
            InvalidArgumentError: not such tensors.
        """
        if not is_dense(x) or x.dim() == 0:
            raise InvalidArgumentError(f"x={shown(x)}; give a dense tensor of inputs, [B, ...]")
        if not is_dense(y) or y.dtype is not torch.int64 or y.shape != x.shape[:1]:
            raise InvalidArgumentError(f"y={shown(y)}; give a class for each input, int64 [{x.shape[0]}]")
        return self._at_once(x, y) or self._by_torch(x, y)

    def _by_torch(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        value = loss.item()
        if math.isfinite(value):
            self.optimizer.step()
        return value, (logits.argmax(1) == y).sum().item()

    def _at_once(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int] | None:
        """Return the same after one compiled call; None, and nothing has happened, if it takes torch's loop."""
        settings = _adam_settings(self.optimizer)
        if settings is None or not _is_plain(x, y):
            return None
        if self._found is None or not _still_stands(self._found):
            self._found = self._find()
        found = self._found
        if found is None or x.dim() != found.dim or kernels_for(x) is reference:
            return None
        self._trainer = self._trainer or kernels_for(x).Trainer()
        done = self._trainer.step(x, y, found.stages, found.weights, settings)
        if done is not None:
            for parameter, gradient in zip(found.parameters, self._trainer.gradients, strict=True):
                parameter.grad = gradient
            torch.autograd.graph.increment_version(found.parameters)  # graphs that saved a weight notice
            self.optimizer._opt_called = True  # schedulers see that the optimizer goes first
        return done

    def _find(self) -> _Found | None:
        """Look for all that a compiled step needs; None where something is unusual."""
        chain = chain_of(self.model)
        layers = [self.model.get_submodule(name) for name in chain]
        (group,), state = self.optimizer.param_groups, self.optimizer.state
        if (
            not chain
            or "forward" in vars(self.model)
            or not all(isinstance(layer, SparseLayer) and not layer.record_gradient for layer in layers)
        ):
            return None
        parameters = parameters_of(layers)
        trained = [parameter for parameter in parameters if parameter is not None]
        own = {id(parameter) for parameter in trained} & {id(parameter) for parameter in group["params"]}
        if not isinstance(layers[-1], SparseLinear) or len(own) < len(trained) or not all(map(state.get, trained)):
            return None
        places = [(vars(self.optimizer), name) for name in ("state", "param_groups")] + [(group, "params")]
        places += [(vars(self.model), "forward"), (vars(type(self.model)), "forward")]
        for name in chain:
            steps = name.split(".")
            parents = (self.model.get_submodule(".".join(steps[:n])) for n in range(len(steps)))
            places += [(parent._modules, step) for parent, step in zip(parents, steps, strict=True)]
        for layer in layers:
            places += [(layer._parameters, name) for name in ("values", "bias")]
            places += [(vars(layer), name) for name in ("index", "relu", "pool", "_record_gradient")]
        for parameter in trained:
            places += [(state, parameter), *((state[parameter], name) for name in MOMENTS)]
        found = _Found(
            [(place.get, key) for place, key in places],
            [place.get(key) for place, key in places],
            (self.optimizer.param_groups, group),
            [(vars(module), name) for module in (self.model, *layers) for name in HOOKS],
            (group["params"], list(group["params"])),
            stages_of(layers),
            trained,
            [None if each is None else (each, *(state[each][name] for name in MOMENTS)) for each in parameters],
            2 if isinstance(layers[0], SparseLinear) else 4,
        )
        return found if _still_stands(found) else None


def _still_stands(found: _Found) -> bool:
    """Whether everything is where it was found, and nobody watches."""
    things, (held, before) = [look_up(key) for look_up, key in found.places], found.held
    same = all(map(operator.is_, things, found.things)) and len(held) == len(before)
    same = same and found.groups[0][0] is found.groups[1]
    if not same or not all(map(operator.is_, held, before)):
        return False
    watched = any(GLOBAL_HOOKS) or any([module[name] for module, name in found.hooks])
    watched = watched or any([p._backward_hooks or p._post_accumulate_grad_hooks for p in found.parameters])
    return not watched and all([p.requires_grad for p in found.parameters])


def _is_plain(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether compiled code could take the batch, and nobody wants the gradient of it."""
    ours = x.dtype is torch.float32 and x.is_cpu and y.is_cpu and y.numel() > 0
    return ours and torch.is_grad_enabled() and not x.requires_grad


def _adam_settings(optimizer: torch.optim.Optimizer) -> tuple[float, float, float, float, float] | None:
    """Return learning rate, β₁, β₂, ε and the factor of AdamW's decay; None for what is not plain Adam."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or len(optimizer.param_groups) != 1:
        return None
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    if not getattr(vars(optimizer).get("step"), "_wrapped_by_lr_sched", "step" not in vars(optimizer)):
        return None  # somebody's own step
    group = optimizer.param_groups[0]
    numbers, decay = (group["lr"], *group["betas"], group["eps"]), group["weight_decay"]
    if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"]:
        return None
    if not all(isinstance(number, float) for number in numbers) or (decay and type(optimizer) is torch.optim.Adam):
        return None
    return *numbers, 1 - group["lr"] * decay
