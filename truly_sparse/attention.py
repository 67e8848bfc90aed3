"""Multi-head attention whose projections are four linear layers, which can be sparse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .arguments import shown
from .errors import InvalidArgumentError


class Attention(nn.Module):
    """``nn.MultiheadAttention`` whose projections ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj`` are ``nn.Linear``.

    torch's own module holds three of its projections in one parameter and reads the fourth without calling it, so that
    no mask and no sparse layer can take effect there. This module computes the same, always on torch's general path:
    the fused path of ``nn.TransformerEncoderLayer`` reads dense weights. It has no ``bias_k``, ``bias_v`` and
    ``add_zero_attn``.

    Args:
        attention: is not changed; the projections are copies of its weights.

    Raises:
        InvalidArgumentError: it has ``bias_k``, ``bias_v`` or ``add_zero_attn``.
    """

    # What torch's encoder layers read before they choose a path.
    _qkv_same_embed_dim = False
    in_proj_weight = in_proj_bias = None

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if attention.bias_k is not None or attention.add_zero_attn:
            raise InvalidArgumentError(f"attention={shown(attention)} has bias_k or add_zero_attn; use one without")
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        packed, bias = attention.in_proj_weight, attention.in_proj_bias
        separate = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
        weights = separate if packed is None else [_part(packed, part) for part in packed.detach().chunk(3)]
        biases = [None] * 3 if bias is None else [_part(bias, part) for part in bias.detach().chunk(3)]
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def to_torch(self) -> nn.MultiheadAttention:
        """Return torch's own module with copies of these weights. The projections must be ``nn.Linear``.

        A packed parameter trains if one of its three parts does.
        """
        q, k, v = (layer.get_parameter("weight") for layer in (self.q_proj, self.k_proj, self.v_proj))
        biases = [layer.bias for layer in (self.q_proj, self.k_proj, self.v_proj)]
        sizes: Any = {"kdim": k.shape[1], "vdim": v.shape[1], "batch_first": self.batch_first}
        has_bias = self.q_proj.bias is not None
        made = nn.MultiheadAttention(self.embed_dim, self.num_heads, self.dropout, has_bias, device="meta", **sizes)
        if made.in_proj_weight is not None:
            made.in_proj_weight = _stacked([q, k, v])
        else:
            made.q_proj_weight, made.k_proj_weight, made.v_proj_weight = (_stacked([part]) for part in (q, k, v))
        if has_bias:
            made.in_proj_bias = _stacked(biases)
        made.out_proj.weight = _stacked([self.out_proj.weight])
        made.out_proj.bias = None if self.out_proj.bias is None else _stacked([self.out_proj.bias])
        return made.train(self.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take and return what ``nn.MultiheadAttention`` does.

        Raises:
            InvalidArgumentError: ``is_causal`` without an ``attn_mask``.
        """
        if is_causal and attn_mask is None:
            raise InvalidArgumentError(f"is_causal={is_causal} without attn_mask; give the causal mask as well")
        batched = query.dim() == 3
        sequence_dim = 1 if self.batch_first and batched else 0
        if not batched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        query, key, value = (
            x.transpose(0, sequence_dim) for x in (query, key, value)
        )  # now [sequence, batch, features]
        q, k, v = map(self._heads, (self.q_proj(query), self.k_proj(key), self.v_proj(value)))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = F.dropout(_softmax(q, k, mask), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        y = self.out_proj(y.permute(2, 0, 1, 3).flatten(2)).transpose(0, sequence_dim)
        return (y if batched else y.squeeze(1)), weights

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[sequence, batch, features]`` to ``[batch, heads, sequence, features of a head]``."""
        return x.unflatten(2, (self.num_heads, -1)).permute(1, 2, 0, 3)

    def _mask(
        self, attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, q: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the sum of both masks, as numbers to add to the scores ``[batch, heads, query, key]``."""
        masks = []
        if attn_mask is not None:
            per_head = attn_mask.dim() == 3
            masks.append(attn_mask.unflatten(0, (-1, self.num_heads)) if per_head else attn_mask[None, None])
        if key_padding_mask is not None:
            masks.append(key_padding_mask[:, None, None])
        numbers = [m if m.is_floating_point() else q.new_zeros(m.shape).masked_fill(m, -math.inf) for m in masks]
        return None if not numbers else sum(numbers[1:], numbers[0])


def _softmax(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
    return F.softmax(scores if mask is None else scores + mask, -1)


def _part(whole: torch.Tensor, part: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(part, whole.requires_grad)


def _stacked(parts: Sequence[torch.Tensor]) -> nn.Parameter:
    """Return one parameter that holds copies of these tensors, one below the other."""
    return nn.Parameter(torch.cat([part.detach() for part in parts]), any(part.requires_grad for part in parts))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Return a layer with copies of these tensors. Nothing is drawn, so torch's random state stays."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer
