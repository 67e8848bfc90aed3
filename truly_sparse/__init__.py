"""Truly sparse neural networks for PyTorch: layers that hold only their nonzeros, and algorithms that rewire them."""

from .adapters import register_adapter
from .attention import Attention
from .averages import AveragedSparseModel
from .backend import warmup
from .conv1d import SparseConv1d
from .convert import densify, sparsify
from .dst import DynamicSparsity, Rewirer
from .errors import InvalidArgumentError, SparseTrainingError, TrainingError
from .fuse import fuse
from .gradual import GradualPruning
from .init import sparse_init
from .interface import SparsifiableLayer, sparse_layers
from .layers import SparseConv2d, SparseLinear
from .optim import PerWeightAdam, decay_groups
from .own_rule import rule_faults
from .recipes import (
    CHT,
    DSR,
    ITOP,
    MEST,
    SET,
    SNFS,
    DeepRewiring,
    GradualMagnitudePruning,
    GraNet,
    RigL,
    SparseMomentum,
    SRigL,
    Static,
    TopKAST,
    grasp,
    lottery_ticket,
    snip,
    synflow,
)
from .rules import GrowRule, gradient_grow, magnitude_prune, random_grow
from .schedule import Epochs
from .step import TrainingStep
from .structure import Structure
from .topology import layer_nnz

__all__ = [
    "CHT",
    "DSR",
    "ITOP",
    "MEST",
    "SET",
    "SNFS",
    "Attention",
    "AveragedSparseModel",
    "DeepRewiring",
    "DynamicSparsity",
    "Epochs",
    "GraNet",
    "GradualMagnitudePruning",
    "GradualPruning",
    "GrowRule",
    "InvalidArgumentError",
    "PerWeightAdam",
    "Rewirer",
    "RigL",
    "SRigL",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseMomentum",
    "SparseTrainingError",
    "SparsifiableLayer",
    "Static",
    "Structure",
    "TopKAST",
    "TrainingError",
    "TrainingStep",
    "decay_groups",
    "densify",
    "fuse",
    "gradient_grow",
    "grasp",
    "layer_nnz",
    "lottery_ticket",
    "magnitude_prune",
    "random_grow",
    "register_adapter",
    "rule_faults",
    "snip",
    "sparse_init",
    "sparse_layers",
    "sparsify",
    "synflow",
    "warmup",
]
