"""The fast forms of a dense network, against which sparse ones are raced."""

from __future__ import annotations

import shutil

import torch
from torch import nn

from truly_sparse import densify


def fast_forms(masked: nn.Module) -> dict[str, nn.Module]:
    """Return a masked network as dense ones in channels_last: plain, and compiled where there is a C++ compiler."""
    forms: dict[str, nn.Module] = {"dense channels_last": densify(masked).to(memory_format=torch.channels_last)}
    if shutil.which("g++") or shutil.which("clang++"):
        compiled = torch.compile(densify(masked).to(memory_format=torch.channels_last))
        forms["dense compiled"] = compiled
    return forms
