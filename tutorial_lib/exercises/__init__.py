"""One check per exercise of the notebooks, and predictions before an experiment."""

from .blocks import check_even_blocks, check_row_loads
from .checking import CheckFailedError
from .design import check_equal_width, check_growth_rule, check_interval
from .history import check_exploration, check_survival
from .kernels import check_spmm, check_transpose, check_weight_gradient
from .masks import check_active_weights, check_forget, check_global_prune, check_masked_linear
from .rewiring import check_erk, check_grow, check_prune, check_prune_share
from .speed import check_best_gain, check_break_even, check_csr, check_fair_time

__all__ = [
    "CheckFailedError",
    "check_active_weights",
    "check_best_gain",
    "check_break_even",
    "check_csr",
    "check_equal_width",
    "check_erk",
    "check_even_blocks",
    "check_exploration",
    "check_fair_time",
    "check_forget",
    "check_global_prune",
    "check_grow",
    "check_growth_rule",
    "check_interval",
    "check_masked_linear",
    "check_prune",
    "check_prune_share",
    "check_row_loads",
    "check_spmm",
    "check_survival",
    "check_transpose",
    "check_weight_gradient",
]
