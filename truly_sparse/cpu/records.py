"""The arguments of compiled code: for each layer a ``Call`` (the tensors of this pass) and a ``Plan`` (the work).

All hold integers only (addresses, sizes, flags), in an array of records with one record per layer of a chain, so that
one call from Python runs any number of layers. ``Phase`` and ``Pass`` say which kernels run in which order, ``Step``
and ``Weights`` what a training step updates.

Activations are described by an address and strides: ``row`` floats from a pixel to the next, ``width`` pixels from a
row of the image to the next, ``plane`` pixels from a channel to the next, ``group`` floats from 16 samples of the batch
to the next 16. These 16 samples are adjacent. A feature of a linear layer is a channel of one pixel.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

# A number, or the number of a base address and the bytes from it (``plan.py``).
Field: TypeAlias = int | tuple[int, int]


class Call(NamedTuple):
    """One layer's pass over one span of the batch."""

    x: Field
    x_row: Field
    x_group: Field
    values: Field
    relu: Field
    pool: Field
    y: Field = 0
    y_row: Field = 0
    y_group: Field = 0
    y_width: Field = 0
    y_plane: Field = 0
    winners: Field = 0  # which pixel of its window each result is, [lanes / 16, C·H·W, 16]; 0: not stored
    bias: Field = 0
    scratch: Field = 0  # scratch memory of the threads, scratch_bytes each
    scratch_bytes: Field = 0
    # a tensor to copy into the form of x (forward) or of g (backward) first; 0: none
    source: Field = 0
    source_sample: Field = 0  # floats from sample to sample (0: batch innermost), and from pixel to pixel
    source_pixel: Field = 0
    # where to copy y (forward) or dx (backward) in the end; 0: it is there already
    result: Field = 0
    result_sample: Field = 0  # likewise
    result_pixel: Field = 0
    # backward
    g: Field = 0  # gradient of y
    g_row: Field = 0
    g_group: Field = 0
    g_width: Field = 0
    g_plane: Field = 0
    masked: Field = 0  # the gradient before ReLU (linear layers)
    masked_row: Field = 0
    dx: Field = 0  # 0: not needed
    dx_row: Field = 0
    dx_group: Field = 0
    dx_width: Field = 0
    dx_plane: Field = 0
    dvalues: Field = 0
    dbias: Field = 0
    dbias_before: Field = 0  # of the layer before, if both are linear
    relu_before: Field = 0
    pieces: Field = 0  # gradients of each 16 samples (convolutions)
    # set by compiled code
    batch: Field = 0  # samples of the span
    lanes: Field = 0  # the same rounded up to whole groups


class Plan(NamedTuple):
    """The addresses of a layer's index, and the division of its work into pieces; the same in every pass."""

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
    tall: int = 1  # outputs × inputs of a block: what is listed once for them (``index.py``)
    wide: int = 1
    t_indptr: int = 0  # the weights by input
    # linear
    blocks: int = 0  # parts of the outputs, in the weights by input
    t_perm: int = 0
    cols: int = 0
    t_rows: int = 0
    col_bytes: int = 0  # of a number in cols: 2 or 4
    row_bytes: int = 0  # of a number in t_rows
    row_chunks: int = 0
    row_pieces: int = 0
    col_chunks: int = 0
    col_pieces: int = 0
    # convolution: x is stored with its zero padding, in images of rows × columns pixels
    stride_y: int = 0
    stride_x: int = 0
    pad_y: int = 0
    pad_x: int = 0
    rows: int = 0
    columns: int = 0
    plane: int = 0  # pixels from channel to channel
    offsets: int = 0  # int32; of each weight: floats from the first pixel of a window to the pixel it multiplies
    # int32, if tall is 1; of each weight by input: its number, floats from a pixel to its gradient in the images of g
    by_input: int = 0
    lead: int = 0  # pixels of zeros before these images


class Phase(NamedTuple):
    """One kernel's work on one layer. The phases of a pass follow each other."""

    kernel: int  # its address
    stage: int  # the layer's place among the records
    pieces: int
    work: int  # about the number of multiply-adds


class Pass(NamedTuple):
    """What a pass through a chain does; the same for all inputs of one shape."""

    batch: int
    span: int  # samples of a span
    spans: int
    stages: int
    numbers: int  # of bases
    phases: int
    phase_count: int
    last_phases: int  # of the last span, which may be shorter
    last_phase_count: int
    work: int  # about the number of multiply-adds
    plans: int
    bases: int  # for each field of each call, the number of its base (``plan.py``)
    offsets: int  # what is added to the base
    by_span: int  # bytes added to each base from span to span
    by_thread: int  # bytes added to each base from thread to thread
    run_spans: int  # the kernel that runs spans
    gradients: int = 0  # number of gradients of values and biases
    add_up: int = 0  # the kernel that sums the gradients of the spans


class Step(NamedTuple):
    """What a training step does in addition to its two passes."""

    forward: int  # the pass
    forward_frame: int
    backward: int
    backward_frame: int
    labels: int
    classes: int
    outcome: int  # of each span: loss, number of correct samples, number of labels outside the classes; float64
    settings: int  # Adam's: lr, beta1, beta2, eps, and AdamW's factor on the weights; float64
    weights: int
    tensors: int  # number of weights and biases
    factors: int  # the bias corrections of each, two float64
    run_spans: int
    update: int


class Weights(NamedTuple):
    """Values or biases of a layer, with their Adam state."""

    values: int
    means: int  # the moments
    squares: int
    step: int  # one float: the number of updates so far
    start: int  # position of their first gradient among those of the chain
    length: int


LINEAR, CONV = 0, 1
CALL, PLAN, PHASE, PASS, STEP, WEIGHTS = (
    np.dtype([(name, np.int64) for name in kind._fields]) for kind in (Call, Plan, Phase, Pass, Step, Weights)
)
