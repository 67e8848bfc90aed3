"""What compiled code is told of a layer: a ``Call``, where the tensors of this pass are, and a ``Plan`` of the work.

Both are plain integers (addresses, sizes, yes or no) in an array of records, one record for each layer of a chain: one
call from Python then does any number of layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Call(NamedTuple):
    """A span of the batch in one layer: addresses of tensors and, for activations, the floats from row to row."""

    x: int
    x_row: int
    values: int
    y: int
    y_row: int
    winners: int  # which pixel of its window each pooled result is, [lanes / 16, C·H·W, 16]; 0 where not remembered
    batch: int
    lanes: int  # the batch rounded up to whole vectors
    relu: int
    pool: int
    bias: int = 0
    scratch: int = 0  # where threads may work, scratch_bytes for each
    scratch_bytes: int = 0
    g: int = 0  # gradient of y
    g_row: int = 0
    masked: int = 0  # the same where ReLU let it pass (linear layers); g itself if the layer behind took care of it
    masked_row: int = 0
    dx: int = 0  # 0 where nobody wants it
    dx_row: int = 0
    dvalues: int = 0
    dbias: int = 0
    dbias_before: int = 0  # of the layer before, if both are linear
    relu_before: int = 0
    partial: int = 0  # dvalues of each piece of work (convolutions)
    by_row: int = 0  # dvalues in the order of the outputs (linear layers)


class Plan(NamedTuple):
    """How a layer's index lies in memory and how its work is cut into pieces; the same in every pass."""

    kind: int  # LINEAR or CONV
    nnz: int
    outputs: int
    inputs: int
    indptr: int
    t_indptr: int
    t_perm: int
    # linear
    cols: int = 0
    t_rows: int = 0
    wide_cols: int = 0  # whether cols takes 4 bytes instead of 2
    wide_rows: int = 0
    row_chunks: int = 0
    row_pieces: int = 0
    col_chunks: int = 0
    col_pieces: int = 0
    # convolution: the sizes of images and of the block that a piece of work copies, forward and backward
    height: int = 0
    width: int = 0
    out_h: int = 0
    out_w: int = 0
    stride_y: int = 0
    stride_x: int = 0
    pad_y: int = 0
    pad_x: int = 0
    band: int = 0
    rows_in_block: int = 0
    cols_in_block: int = 0
    offsets: int = 0
    t_pad_y: int = 0
    t_pad_x: int = 0
    t_band: int = 0
    t_rows_in_block: int = 0
    t_cols_in_block: int = 0
    t_offsets: int = 0


LINEAR, CONV = 0, 1
CALL = np.dtype([(name, np.int64) for name in Call._fields])
PLAN = np.dtype([(name, np.int64) for name in Plan._fields])
