"""The published methods, as settings to attach to a model, an optimizer and a training of known length.

A file per family; ``decade.py`` is the table of all of them, with their papers.
"""

from .base import DynamicRecipe, Recipe, describe
from .before_training import grasp, snip, synflow
from .classic import ITOP, MEST, SET, SNFS, RigL, Static
from .deep_rewiring import DeepRewiring
from .fan_in import SRigL
from .gradual import GradualMagnitudePruning, GraNet
from .links import CHT
from .lottery_ticket import lottery_ticket
from .sharing import DSR, SparseMomentum
from .top_kast import TopKAST

__all__ = [
    "CHT",
    "DSR",
    "ITOP",
    "MEST",
    "SET",
    "SNFS",
    "DeepRewiring",
    "DynamicRecipe",
    "GraNet",
    "GradualMagnitudePruning",
    "Recipe",
    "RigL",
    "SRigL",
    "SparseMomentum",
    "Static",
    "TopKAST",
    "describe",
    "grasp",
    "lottery_ticket",
    "snip",
    "synflow",
]
