"""Print a digest of what trainings end with, to tell whether a change of the code changed a single bit.

    python tools/digests.py > before.txt        (on one commit)
    python tools/digests.py | diff before.txt - (on another, same machine)

Each line is a training of 207 steps on scikit-learn's digits: the digest of all weights and biases, of all topologies,
and of all losses. Other CPUs, thread counts and versions of torch round differently, so no digest is kept.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from truly_sparse import (
    SET,
    SNFS,
    GradualMagnitudePruning,
    RigL,
    Static,
    TrainingError,
    fuse,
    sparse_init,
    sparse_layers,
    sparsify,
    warmup,
)
from tutorial_lib import Digits, TutorialCNN, fit, load_data, mask_model

EPOCHS, INTERRUPTED_AT = 9, 130
RECIPES = {
    "static": Static(),
    "SET": SET(every=20),
    "RigL": RigL(every=20),
    "SNFS": SNFS(every=20),
    "RigL, sampled, global": RigL(every=20, grow="sampled gradient", scope="global"),
}
FORMS = {
    "masked": lambda masked: masked,
    "truly sparse": sparsify,
    "truly sparse, fused": lambda masked: fuse(sparsify(masked)),
}


def masked_model(scheme: str) -> nn.Module:
    """Return the network that most trainings start from."""
    torch.manual_seed(0)
    return sparse_init(mask_model(TutorialCNN(0.5), 0.95, scheme, seed=1), seed=2)


def digest(parts: list[torch.Tensor]) -> str:
    """Return the first 16 hex digits of the SHA-256 of tensors' bytes."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def trained(model: nn.Module, data: Digits, **options: object) -> str:
    """Train and return the line of digests."""
    history = fit(model, data, epochs=EPOCHS, lr=3e-3, schedule="onecycle", seed=3, progress=False, **options)
    topologies = [torch.from_numpy(t) for name in history.topology.shapes for t in history.topology.topologies(name)]
    losses = torch.tensor(history.train_loss + history.test_loss, dtype=torch.float64)
    active = [layer.active() for layer in sparse_layers(model).values()]
    weights = digest([p for _, p in sorted(model.named_parameters())])
    return f"weights {weights}  topologies {digest(topologies + active)}  losses {digest([losses])}"


class Interrupted(Exception):
    """Raised in the middle of a run, as Ctrl-C would be."""


def resumed(make: Callable[[], nn.Module], data: Digits, **options: object) -> str:
    """Interrupt a run that writes a checkpoint, then let it go on from there in a new model."""
    with tempfile.TemporaryDirectory() as folder:
        model, calls = make(), iter(range(10**9))

        def stop(*_: object) -> None:
            if model.training and next(calls) == INTERRUPTED_AT:
                raise Interrupted

        hook = model.register_forward_pre_hook(stop)
        try:
            trained(model, data, checkpoint=Path(folder) / "run", **options)
        except (Interrupted, TrainingError):
            hook.remove()
        return trained(make(), data, checkpoint=Path(folder) / "run", **options)


def main() -> None:
    """Print one line per training."""
    torch.set_num_threads(2)
    warmup()
    data = load_data("digits")
    torch.manual_seed(0)
    print("dense:", trained(TutorialCNN(0.5), data))
    for scheme in ("uniform", "erk"):
        for form, convert in FORMS.items():
            for name, recipe in RECIPES.items():
                print(
                    f"{form}, {scheme}, {name}:",
                    trained(convert(masked_model(scheme)), data, sparsity=recipe),
                    flush=True,
                )
    torch.manual_seed(0)
    gradual = GradualMagnitudePruning(0.95, every=20)
    print("masked, gradual pruning:", trained(mask_model(TutorialCNN(0.5), 0.0), data, sparsity=gradual))
    for name, optimizer in (("SGD", "sgd"), ("Adam per weight", "adam per weight")):
        model = FORMS["truly sparse, fused"](masked_model("erk"))
        print(f"truly sparse, fused, {name}:", trained(model, data, sparsity=RigL(every=20), optimizer=optimizer))
    for form, convert in FORMS.items():
        make = lambda convert=convert: convert(masked_model("erk"))  # noqa: E731
        print(f"{form}, RigL, resumed:", resumed(make, data, sparsity=RigL(every=20)))


if __name__ == "__main__":
    main()
