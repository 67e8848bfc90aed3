"""A checksum that shows when a layer's values were overwritten by those of another topology."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .errors import TrainingError

NAME = "topology_checksum"
ROUNDING = 2  # of an average of equal checksums


class Seal:
    """The checksum of a layer's topology, in the layer as a buffer and here as a number.

    Code that averages or copies models position by position, as ``torch.optim.swa_utils.AveragedModel`` does, copies
    or averages buffers as well. The buffer then holds the checksum of another topology than the index.

    The buffer is read only after it was written to, which torch counts: reading it costs a synchronization on a GPU.
    It is not part of ``state_dict``.

    Args:
        layer: receives the buffer.
        places: the topology, as contiguous tensors on the CPU.
    """

    def __init__(self, layer: nn.Module, places: Iterable[torch.Tensor]) -> None:
        # 22 bits: torch averages whole numbers in float32, which is exact up to 24 bits.
        self.checksum = functools.reduce(lambda so_far, of: zlib.crc32(of.numpy().data, so_far), places, 0) >> 10
        values = layer._parameters.get("values")
        with torch.inference_mode(False):  # inference tensors count no writes
            held = torch.tensor(self.checksum, device="cpu" if values is None else values.device)
        layer.register_buffer(NAME, held, persistent=False)
        self.writes = held._version

    def check(self, layer: Any) -> None:
        """Refuse to compute with values of another topology.

        Raises:
            TrainingError: the buffer was overwritten with that of another topology, or with an average.
        """
        held: Any = layer._buffers[NAME]
        try:
            if held._version == self.writes:
                return
        except RuntimeError:  # an inference tensor counts no writes
            return
        if abs(int(held) - self.checksum) > ROUNDING:
            raise TrainingError(
                f"this {type(layer).__name__} holds values of another topology: they were copied or averaged by "
                "position after a rewiring; use truly_sparse.AveragedSparseModel, which averages by connection"
            )
        self.writes = held._version
