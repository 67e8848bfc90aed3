"""What compiled code is told of a layer: a ``Call``, where the tensors of this pass are, and a ``Plan`` of the work.

Both are plain integers (addresses, sizes, yes or no) in an array of records, one record for each layer of a chain: one
call from Python then does any number of layers. ``Weights`` are the same for what an optimizer updates.

Activations are told by an address and strides in floats: ``row`` from a pixel to the next, ``width`` pixels from a row
of the image to the next, ``plane`` pixels from a channel to the next, ``group`` from 16 samples of the batch to the
next 16, which lie side by side. A feature of a linear layer is a channel of one pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Call(NamedTuple):
    """A span of the batch in one layer."""

    x: int
    x_row: int
    x_group: int
    values: int
    relu: int
    pool: int
    y: int = 0
    y_row: int = 0
    y_group: int = 0
    y_width: int = 0
    y_plane: int = 0
    winners: int = 0  # which pixel of its window each pooled result is, [lanes / 16, C·H·W, 16]; 0: not remembered
    bias: int = 0
    scratch: int = 0  # where threads may work, scratch_bytes for each
    scratch_bytes: int = 0
    # a tensor that has to be brought into the form of x (forward) or of g (backward) first; 0 where there is none
    source: int = 0
    source_sample: int = 0  # floats from sample to sample (0: batch innermost), and from pixel to pixel
    source_pixel: int = 0
    # backward
    g: int = 0  # gradient of y
    g_row: int = 0
    g_group: int = 0
    g_width: int = 0
    g_plane: int = 0
    masked: int = 0  # the same where ReLU let it pass (linear layers)
    masked_row: int = 0
    to_mask: int = 0  # whether that is still to do, and dbias; if not, the layer behind has done it
    dx: int = 0  # in x's form but for its row; 0 where nobody wants it
    dx_row: int = 0
    result: int = 0  # where dx has to be brought in the end; 0 if it is there already
    result_row: int = 0
    dvalues: int = 0
    dbias: int = 0
    dbias_before: int = 0  # of the layer before, if both are linear
    relu_before: int = 0
    pieces: int = 0  # gradients of each piece of the batch (convolutions that threads share)
    # filled in by compiled code
    batch: int = 0  # samples of the span
    lanes: int = 0  # the same rounded up to whole groups
    threads: int = 0  # that share the work


class Plan(NamedTuple):
    """How a layer's index lies in memory and how its work is cut into pieces; the same in every pass."""

    kind: int  # LINEAR or CONV
    nnz: int
    outputs: int
    inputs: int
    indptr: int
    # images without padding; of a linear layer, one pixel
    height: int = 1
    width: int = 1
    out_h: int = 1
    out_w: int = 1
    t_indptr: int = 0  # the weights by input
    # linear
    blocks: int = 0  # of outputs, in the weights by input
    t_perm: int = 0
    cols: int = 0
    t_rows: int = 0
    wide_cols: int = 0  # whether cols takes 4 bytes instead of 2
    wide_rows: int = 0
    row_chunks: int = 0
    row_pieces: int = 0
    col_chunks: int = 0
    col_pieces: int = 0
    # convolution: x lies with its zero padding written out, in images of rows × columns pixels
    stride_y: int = 0
    stride_x: int = 0
    pad_y: int = 0
    pad_x: int = 0
    rows: int = 0
    columns: int = 0
    plane: int = 0  # pixels from channel to channel
    offsets: int = 0  # floats from a window's first pixel to the one that each weight sees
    by_input: int = 0  # of each weight by input: its number, and floats from a pixel to its gradient in g's images
    lead: int = 0  # pixels of zeros before these images


class Weights(NamedTuple):
    """Values or biases of a layer, as Adam sees them."""

    values: int
    means: int  # the moments
    squares: int
    step: int  # one float: how often these were updated
    start: int  # number of their first gradient among those of the chain
    length: int


LINEAR, CONV = 0, 1
CALL = np.dtype([(name, np.int64) for name in Call._fields])
PLAN = np.dtype([(name, np.int64) for name in Plan._fields])
WEIGHTS = np.dtype([(name, np.int64) for name in Weights._fields])
