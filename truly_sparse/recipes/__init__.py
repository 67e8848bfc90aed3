"""The published methods, as settings to attach to a model, an optimizer and a training of known length.

A file per family; ``decade.py`` is the table of all of them, with their papers.
"""

from .base import DynamicRecipe, Recipe, describe
from .classic import SET, SNFS, RigL, Static
from .gradual import GradualMagnitudePruning

__all__ = [
    "SET",
    "SNFS",
    "DynamicRecipe",
    "GradualMagnitudePruning",
    "Recipe",
    "RigL",
    "Static",
    "describe",
]
