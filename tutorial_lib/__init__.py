"""The tutorial's helper library: dynamic sparse training in small, readable pieces."""

from . import checks, published, viz
from .bench import Benchmark, benchmark, load_result, save_result
from .checkpoint import load_checkpoint, save_checkpoint
from .cost import multiply_adds, storage_bytes
from .csr import to_csr
from .data import Digits, load_data
from .dst import (
    DynamicSparsity,
    Epochs,
    GradualPruning,
    GrowRule,
    gradient_grow,
    magnitude_prune,
    random_grow,
)
from .fuse import fuse
from .init import sparse_init
from .kernels import warmup
from .masked import MaskedConv2d, MaskedLinear, densify, mask_model, sparsity_report
from .models import TutorialCNN, count_parameters
from .optim import PerWeightAdam
from .player import Player, topology_player
from .predict import Prediction, ask, reconcile
from .project import default_device, profile
from .recipes import SET, SNFS, GradualMagnitudePruning, RigL, Static
from .recorder import TopologyRecorder
from .sparse import SparseConv2d, SparseLinear, sparsify
from .step import TrainingStep
from .topology import layer_nnz
from .train import History, evaluate, fit

__all__ = [
    "SET",
    "SNFS",
    "Benchmark",
    "Digits",
    "DynamicSparsity",
    "Epochs",
    "GradualMagnitudePruning",
    "GradualPruning",
    "GrowRule",
    "History",
    "MaskedConv2d",
    "MaskedLinear",
    "PerWeightAdam",
    "Player",
    "Prediction",
    "RigL",
    "SparseConv2d",
    "SparseLinear",
    "Static",
    "TopologyRecorder",
    "TrainingStep",
    "TutorialCNN",
    "ask",
    "benchmark",
    "checks",
    "count_parameters",
    "default_device",
    "densify",
    "evaluate",
    "fit",
    "fuse",
    "gradient_grow",
    "layer_nnz",
    "load_checkpoint",
    "load_data",
    "load_result",
    "magnitude_prune",
    "mask_model",
    "multiply_adds",
    "profile",
    "published",
    "random_grow",
    "reconcile",
    "save_checkpoint",
    "save_result",
    "sparse_init",
    "sparsify",
    "sparsity_report",
    "storage_bytes",
    "to_csr",
    "topology_player",
    "viz",
    "warmup",
]
