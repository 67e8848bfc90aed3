"""Adam with a step count per weight, and groups of parameters for weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .arguments import check_model, require, shown
from .errors import InvalidArgumentError
from .interface import sparse_layers


class PerWeightAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1) whose step count ``t`` is kept per weight instead of per tensor.

    Adam divides its moments by ``1 − βᵗ`` because they start at zero. A weight that grows late starts with moments of
    zero, but in torch's Adam with the late ``t`` of its layer, where this correction has no effect: its first step is
    ``(1 − β₁) / √(1 − β₂)`` ≈ 3.2 times the learning rate instead of 1 time. Here its count starts at zero as well
    (:class:`DynamicSparsity` moves it like all optimizer state of the weight's shape).

    Args:
        params: the parameters to train.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: small number added to the denominator.

    Raises:
        InvalidArgumentError: a value outside its range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        params = list(params)
        if not params or not all(isinstance(each, (torch.Tensor, dict)) for each in params):
            raise InvalidArgumentError(f"params={shown(params)}; give model.parameters() of a model that has some")
        if not 0 < lr < math.inf or not 0 < eps < math.inf or not all(0 <= beta < 1 for beta in betas):
            raise InvalidArgumentError(f"lr={lr!r}, betas={betas!r}, eps={eps!r}; use lr, eps > 0 and betas in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the present gradients; return the result of ``closure``, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {key: torch.zeros_like(parameter) for key in ("age", "exp_avg", "exp_avg_sq")}
                state["age"] += 1
                state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                mean = state["exp_avg"] / (1 - beta1 ** state["age"])
                square = state["exp_avg_sq"] / (1 - beta2 ** state["age"])
                parameter.addcdiv_(mean, square.sqrt_().add_(group["eps"]), value=-group["lr"])
        return loss


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters of ``model`` in two groups for an optimizer: those that decay, and those that do not.

    Weights decay: parameters of two or more dimensions, and the values of sparse layers, which have one dimension.
    Biases and the parameters of norms do not. A parameter that is used twice appears once.

    Args:
        model: any module.
        weight_decay: of the first group, at least 0; that of the second is 0.

    Returns:
        Two groups with named parameters, as ``torch.optim`` optimizers take them.

    Raises:
        InvalidArgumentError: ``weight_decay`` is negative or not finite, or ``model`` is no module.
    """
    check_model(model)
    require(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "use a finite number of at least 0")
    sparse = {layer.weight_parameter for layer in sparse_layers(model).values()}
    decay: list[tuple[str, nn.Parameter]] = []
    no_decay: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        group = decay if parameter in sparse or parameter.dim() > 1 else no_decay
        group.append((name, parameter))
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
