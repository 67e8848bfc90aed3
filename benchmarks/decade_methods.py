"""The contenders of ``benchmarks/decade.py``: each method with common settings and with its own.

Common: 30% of a layer's connections are replaced every 100 steps, falling by the cosine, until three quarters of the
training; first weights are drawn for the active inputs. Own: the settings of its paper or the authors' code, as far as
they are known (``own`` in ``truly_sparse/recipes/decade.py``), which mostly are the defaults of its class; for methods
before training also the weights that they scored. Where one method has only one kind, its name says which.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import override

from truly_sparse import (
    CHT,
    DSR,
    ITOP,
    MEST,
    SET,
    SNFS,
    DeepRewiring,
    Epochs,
    GraNet,
    RigL,
    SparseMomentum,
    SRigL,
    Static,
    TopKAST,
    fuse,
    grasp,
    lottery_ticket,
    snip,
    sparse_init,
    sparsify,
    synflow,
)
from truly_sparse.interface import Units
from truly_sparse.recipes import Recipe
from truly_sparse.recipes.before_training import with_topology
from truly_sparse.recipes.classic import MagnitudeAndGradient
from truly_sparse.topology import generator_of, sample_distinct
from tutorial_lib import Digits, TutorialCNN, fit, load_data, mask_model
from tutorial_lib.contenders import IMAGE, Contender, Dense, Gradual, Sparse

COMMON = {"prune_fraction": 0.3, "every": 100, "until": 0.75, "decay": "cosine"}
SAMPLES = 100  # ten per class, as GraSP takes them


@functools.cache
def data_of(images: int | None) -> Digits:
    """Return MNIST with this many training images; None: all."""
    return load_data("mnist", train_size=images)


@dataclass(frozen=True)
class BeforeTraining(Contender):
    """A truly sparse network whose topology a dense one chose, which then stays unless a recipe moves it.

    Attributes:
        how: ``"SNIP"``, ``"GraSP"`` or ``"SynFlow"``.
        init: ``"dense"``: it trains the dense network's weights that were scored, as the papers do;
            ``"sparse-aware"``: its first weights are drawn after the choice, by the rule of most others.
        shares_only: whether only the number of weights of each layer is taken from the choice, and their places drawn.
        moved: how the topology changes in training.
    """

    how: str = "SNIP"
    init: str = "dense"
    shares_only: bool = False
    moved: Recipe = dataclasses.field(default=Static())

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        data = load_data("mnist", train_size=SAMPLES, seed=seed)
        torch.manual_seed(seed)
        dense = TutorialCNN()
        choose: dict[str, Callable[[], nn.Module]] = {
            "SNIP": lambda: snip(dense, lambda model: F.cross_entropy(model(data.train_x), data.train_y), sparsity),
            "GraSP": lambda: grasp(
                dense, lambda model: F.cross_entropy(model(data.train_x) / 200, data.train_y), sparsity
            ),
            "SynFlow": lambda: synflow(dense, IMAGE, sparsity),
        }
        pruned = choose[self.how]()
        masked = mask_model(with_drawn_places(dense, pruned, seed) if self.shares_only else pruned)
        return fuse(sparsify(sparse_init(masked, seed) if self.init == "sparse-aware" else masked))

    @override
    def recipe(self, sparsity: float) -> Recipe:
        return self.moved


def with_drawn_places(dense: nn.Module, pruned: nn.Module, seed: int) -> nn.Module:
    """Return a dense model with masks that keep as many weights of each layer as ``pruned``, at random places."""
    generator = generator_of(seed)
    masks = {name.removesuffix(".weight_mask"): mask for name, mask in pruned.named_buffers()}
    drawn = {name: sample_distinct(mask.numel(), int(mask.sum()), generator) for name, mask in masks.items()}
    return with_topology(dense, drawn)


@dataclass(frozen=True)
class Ticket(Contender):
    """A winning ticket: trained, pruned and rewound in rounds of 20%, on a subset of MNIST; then trained like others.

    Attributes:
        images: training images of a round.
        epochs: of a round.
        batch_size: of a round.
    """

    images: int = 1000
    epochs: int = 30
    batch_size: int = 16

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        rounds = next(n for n in range(1, 100) if 0.8**n <= 1.001 * (1 - sparsity))
        found = lottery_ticket(
            TutorialCNN(), lambda model: self.train(model, seed), sparse_or_masked, sparsity=sparsity, rounds=rounds
        )
        return fuse(sparsify(found))

    def train(self, model: nn.Module, seed: int) -> None:
        """Train a round's network, evaluated once."""
        data = data_of(self.images)
        small_test = dataclasses.replace(data, test_x=data.test_x[:100], test_y=data.test_y[:100])
        given = {"lr": self.lr, "schedule": self.schedule, "optimizer": self.optimizer, "seed": seed}
        fit(model, small_test, epochs=self.epochs, batch_size=self.batch_size, progress=False, **given)

    @override
    def recipe(self, sparsity: float) -> Recipe:
        return Static()


def sparse_or_masked(model: nn.Module) -> nn.Module:
    """Return a round's network: masked while it is nearly dense, where truly sparse layers are slower."""
    kept = [mask.mean().item() for name, mask in model.named_buffers() if name.endswith("weight_mask")]
    return fuse(sparsify(model)) if kept and sum(kept) / len(kept) < 0.3 else mask_model(model)


@dataclass(frozen=True)
class Wide(Contender):
    """The tutorial's network with all hidden layers wider or narrower.

    Attributes:
        width: factor; see :class:`TutorialCNN`.
        sparse: static with ERK densities at the run's sparsity, or dense.
    """

    width: float = 1.0
    sparse: bool = True

    @property
    @override
    def is_dense(self) -> bool:
        return not self.sparse

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        dense = TutorialCNN(self.width)
        return fuse(sparsify(sparse_init(mask_model(dense, sparsity, "erk", seed), seed))) if self.sparse else dense

    @override
    def recipe(self, sparsity: float) -> Recipe | None:
        return Static() if self.sparse else None


@dataclass(frozen=True)
class LargerSet(Sparse):
    """Top-KAST: the network computes with the run's number of weights, and holds those that are updated besides."""

    how: TopKAST = dataclasses.field(default=TopKAST())

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        return super().build(1 - (1 - sparsity) / self.how.forward, seed)


@dataclass(frozen=True)
class FromDenser(Sparse):
    """GraNet: the network starts with more weights, and ends with the run's number."""

    how: GraNet = dataclasses.field(default=GraNet())
    scheme: str = "er"

    @override
    def build(self, sparsity: float, seed: int) -> nn.Module:
        return super().build(self.how.start, seed)

    @override
    def recipe(self, sparsity: float) -> Recipe:
        return dataclasses.replace(self.how, sparsity=sparsity)


def contender_of(recipe: Recipe) -> Contender:
    """Return how a recipe is trained here: as the recorded contender of its kind."""
    if isinstance(recipe, TopKAST):
        return LargerSet(how=recipe)
    return FromDenser(how=recipe) if isinstance(recipe, GraNet) else Sparse(how=recipe)


def weight_times_gradient(layer: Units) -> torch.Tensor:
    """Return ``|w · ∂L/∂w|`` of each active unit: SNIP's score, as a prune criterion of Nowak et al. (2023)."""
    return (layer.active_values() * layer.gradient_at(layer.active())).abs()


def at_random(layer: Units) -> torch.Tensor:
    """Return a random score of each active unit: the control for prune criteria."""
    return torch.rand(len(layer.active()))


TRULY_SPARSE: dict[str, Contender] = {
    "static": Sparse(how=Static()),
    "Deep Rewiring, own": Sparse(how=DeepRewiring()),
    "SET, common": Sparse(how=SET(**COMMON)),
    "SET, own": Sparse(how=SET(0.3, Epochs(1))),
    "DSR, common": Sparse(how=DSR(**COMMON)),
    "DSR, own": Sparse(how=DSR()),
    "SNFS without sharing, common": Sparse(how=SNFS()),
    "SNFS, common": Sparse(how=SparseMomentum(**COMMON)),
    "SNFS, own": Sparse(how=SparseMomentum()),
    "RigL, common and own": Sparse(how=RigL()),
    "ITOP, own": Sparse(how=ITOP()),
    "MEST, common": Sparse(how=MEST(**COMMON)),
    "MEST, own": Sparse(how=MEST()),
    "GraNet, own": FromDenser(),
    "SRigL, common and own": Sparse(how=SRigL()),
    "CHT, common": Sparse(how=CHT(**COMMON)),
    "CHT, own": Sparse(how=CHT()),
    "SNIP, common": BeforeTraining(how="SNIP", init="sparse-aware"),
    "SNIP, own": BeforeTraining(how="SNIP"),
    "GraSP, common": BeforeTraining(how="GraSP", init="sparse-aware"),
    "GraSP, own": BeforeTraining(how="GraSP"),
    "SynFlow, common": BeforeTraining(how="SynFlow", init="sparse-aware"),
    "SynFlow, own": BeforeTraining(how="SynFlow"),
    "Top-KAST, own": LargerSet(),
}
# Its network starts dense, and is masked.
FROM_DENSE: dict[str, Contender] = {"GMP, own": Gradual()}
DENSE: dict[str, Contender] = {"dense": Dense()}
TICKET: dict[str, Contender] = {"IMP, own": Ticket()}
# RigL with other prune criteria, and first weights of a dense network.
VARIATIONS: dict[str, Contender] = {
    "RigL, prunes by magnitude and gradient": Sparse(how=RigL(prune=MagnitudeAndGradient())),
    "RigL, prunes by weight times gradient": Sparse(how=RigL(prune=weight_times_gradient)),
    "RigL, prunes at random": Sparse(how=RigL(prune=at_random)),
    "RigL, dense initialisation": Sparse(how=RigL(), init="dense"),
    "static, dense initialisation": Sparse(how=Static(), init="dense"),
}
LENGTH: dict[str, Contender] = {
    name: TRULY_SPARSE[name] for name in ("static", "SET, common", "RigL, common and own", "ITOP, own")
}
# What a method before training gains by how it divides the weights among the layers.
SHARES: dict[str, Contender] = {
    f"{how}, SynFlow's shares": BeforeTraining(how="SynFlow", init="sparse-aware", shares_only=True, moved=moved)
    for how, moved in (("static", Static()), ("RigL", RigL()))
}
FIRST_EPOCH: dict[str, Contender] = {
    name: (TRULY_SPARSE | VARIATIONS)[name] for name in ("static", "static, dense initialisation")
}
WIDTHS: dict[str, Contender] = {
    f"{'static' if sparse else 'dense'}, width {width}": Wide(width=width, sparse=sparse)
    for width in (0.25, 0.5, 1.0, 2.0)
    for sparse in (True, False)
}
