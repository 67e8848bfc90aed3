"""Modules that act as linear ones without being ``nn.Linear``, and what takes their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .arguments import check_patterns, require, shown
from .attention import Attention
from .copies import copied
from .errors import InvalidArgumentError
from .interface import Names, check_excluded, is_chosen, is_weight_layer, owners_of

Module = TypeVar("Module", bound=nn.Module)
Adapter: TypeAlias = Callable[[Module], nn.Module | None]


def _attention(attention: nn.MultiheadAttention) -> nn.Module | None:
    computed = any(module._forward_pre_hooks or is_parametrized(module) for module in attention.modules())
    return None if computed or attention.bias_k is not None or attention.add_zero_attn else Attention(attention)


ADAPTERS: dict[type[nn.Module], Adapter[nn.Module]] = {}


def register_adapter(kind: type[Module], adapt: Adapter[Module]) -> None:
    """Let :func:`sparsify` and ``mask_model`` reach the weights of a kind of module that they do not know.

    They put the module that ``adapt`` returns in the place of each module of this kind, and convert the ``nn.Linear``,
    ``nn.Conv1d`` and ``nn.Conv2d`` layers in it. ``nn.MultiheadAttention`` is registered in this way, as
    :class:`Attention`. Names in ``state_dict`` are then those of the new module. A module that shares a parameter with
    another one stays as it is. :func:`densify` turns :class:`Attention` back; the new module of another adapter stays.

    Args:
        kind: the class. Its subclasses are not meant: they may compute something else.
        adapt: maps a module of this kind to one that computes the same and shares no tensor with it; None leaves this
            module dense.

    Raises:
        InvalidArgumentError: ``kind`` is not a module class, or ``adapt`` is not callable.
    """
    require(isinstance(kind, type) and issubclass(kind, nn.Module), "kind", kind, "give a subclass of nn.Module")
    require(callable(adapt), "adapt", adapt, "give a function of a module")
    ADAPTERS[kind] = adapt  # type: ignore[assignment]  # it is called with modules of its kind only


register_adapter(nn.MultiheadAttention, _attention)


def adapted(model: nn.Module, include: Names = ("*",), exclude: Names = ()) -> nn.Module:
    """Return ``model`` with equivalents in place of its adaptable modules, or itself if no layer of them is chosen.

    The copy shares all other parameters and buffers with the model.

    Args:
        model: is not changed.
        include: see :func:`weight_layers`.
        exclude: see :func:`weight_layers`.

    Raises:
        InvalidArgumentError: an adapter returned something other than a module, or one of ``exclude`` means no module.
    """
    check_patterns("include", include)
    check_patterns("exclude", exclude)
    modules, owners = dict(model.named_modules()), owners_of(model)
    known, replaced = dict(modules), {}
    for name, module in modules.items():
        adapt = ADAPTERS.get(type(module))
        alone = all(len(owners[p]) == 1 for p in module.parameters())
        new = adapt(module) if adapt is not None and alone else None
        if new is None:
            continue
        if not isinstance(new, nn.Module):
            raise InvalidArgumentError(
                f"the adapter of {name!r} returned {shown(new)}; it must return a module or None"
            )
        object.__setattr__(new, "adapted_from", type(module))  # for include and exclude by class
        layers = {f"{name}.{own}".strip("."): layer for own, layer in new.named_modules() if is_weight_layer(layer)}
        known |= layers
        if any(is_chosen(layer, modules | layers, include, exclude) for layer in layers):
            replaced[name] = new.train(module.training)
    check_excluded(exclude, known)
    if not replaced:
        return model
    model = copied(model, replaced, share=True)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # these are for torch's own attention
    return model


def unadapted(model: nn.Module) -> nn.Module:
    """Return ``model`` with ``nn.MultiheadAttention`` in place of each dense :class:`Attention`, or itself without any.

    The copy shares all other parameters and buffers with the model.

    Args:
        model: is not changed.
    """
    found = {name: module for name, module in model.named_modules() if type(module) is Attention and _is_dense(module)}
    return copied(model, {name: module.to_torch() for name, module in found.items()}, share=True) if found else model


def _is_dense(attention: Attention) -> bool:
    parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    return all(type(part) is nn.Linear for part in parts)
