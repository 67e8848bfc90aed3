"""Networks of timm and transformers, as the packages build them: sparse, trained with rewiring, saved and loaded.

``make test-zoo`` installs the packages. ``--record-zoo`` writes what the tests found to ``figures/zoo.json``, from
which ``tools/readme_tables.py`` makes the table of ``docs/your-own-network.md``.
"""

import math
import re

import pytest
import torch

from tests.zoo.networks import NETWORKS, loss_of, outputs, topologies
from truly_sparse import RigL, densify, sparse_layers, sparsify
from tutorial_lib import mask_model

pytestmark = pytest.mark.zoo
each_network = pytest.mark.parametrize("name", NETWORKS)


def close(one, other, tolerance):
    """Compare relative to the largest number: after normalisation layers the small ones are rounding errors."""
    return (one - other).abs().max() <= tolerance * one.abs().max()


@each_network
def test_masked_and_truly_sparse_compute_the_same(name):
    network = NETWORKS[name]
    masked = mask_model(network.build(), 0.8)
    sparse = sparsify(masked)
    inputs, labels = network.batch()
    gradients = []
    for model in (masked, sparse):
        loss_of(model.train(), inputs, labels).backward()
        gradients.append([layer.weight_parameter.grad for layer in sparse_layers(model).values()])
    for layer, one, other in zip(sparse_layers(masked).values(), *gradients, strict=True):
        assert close(one[layer.mask], other, 1e-3)
    with torch.no_grad():
        assert close(outputs(masked.eval(), inputs), outputs(sparse.eval(), inputs), 1e-4)


@each_network
def test_masked_and_truly_sparse_train_and_rewire_alike(name):
    """In float64: in float32 the losses of EfficientNet-B0 differ by percents after five steps, from rounding alone."""
    network = NETWORKS[name]
    masked = mask_model(network.build(), 0.8).double()
    sparse = sparsify(masked)
    first = topologies(sparse)
    inputs, labels = network.batch()
    inputs = {key: each.double() if each.is_floating_point() else each for key, each in inputs.items()}
    losses = [train(model, inputs, labels) for model in (masked, sparse)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[1][-1] < losses[1][0]
    masked_ones, sparse_ones = topologies(masked), topologies(sparse)
    assert all(torch.equal(masked_ones[layer], sparse_ones[layer]) for layer in first)
    active = sum(map(len, first.values()))
    assert sum(torch.isin(first[layer], sparse_ones[layer]).sum() for layer in first) <= 0.9 * active


def train(model, inputs, labels):
    """Train on one batch, with two rewirings. Return the loss before each step."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05, momentum=0.9)
    driver = RigL(every=2, until=1.0).attach(model, optimizer, steps_per_epoch=1, total_steps=5, seed=0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_of(model, inputs, labels)
        loss.backward()
        optimizer.step()
        driver.step()
        losses.append(loss.item())
    assert driver.rewirings == 2
    return losses


@each_network
def test_all_weights_but_embeddings_are_in_sparse_layers(name, zoo):
    """A head that shares the weight of an embedding counts as one."""
    network = NETWORKS[name].build()
    tables = [each.weight for each in network.modules() if isinstance(each, torch.nn.Embedding)]
    tables += [
        each for name, each in network.named_parameters() if re.search("pos_embed|position_embed|cls_token", name)
    ]
    embeddings = {id(each) for each in tables}
    weights = sum(each.numel() for each in network.parameters() if each.dim() > 1 and id(each) not in embeddings)
    layers = sparse_layers(sparsify(network, 0.8)).values()
    covered = sum(math.prod(layer.dense_shape) for layer in layers)
    assert 0.99 * weights <= covered <= weights
    assert sum(len(layer.active()) for layer in layers) == round(0.2 * covered)
    package = NETWORKS[name].package
    zoo(name, {"package": package, "weights": weights, "covered": covered, "layers": len(layers)})


def saved_and_loaded_by_timm(model, optimizer, other, folder):
    from timm.models import load_checkpoint
    from timm.utils import CheckpointSaver

    CheckpointSaver(model, optimizer, checkpoint_dir=folder).save_checkpoint(0, metric=0.0)
    load_checkpoint(other, str(folder / "last.pth.tar"))


def saved_and_loaded_by_transformers(model, optimizer, other, folder):
    from safetensors.torch import load_model

    model.save_pretrained(folder, save_original_format=False)  # True renames the parameters of some networks
    load_model(other, folder / "model.safetensors")


SAVERS = {"timm": saved_and_loaded_by_timm, "transformers": saved_and_loaded_by_transformers}


@each_network
def test_saved_and_loaded_by_the_packages_own_means(name, tmp_path):
    network = NETWORKS[name]
    model, other = sparsify(network.build(), 0.8), sparsify(network.build(seed=1), 0.8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    SAVERS[network.package](model, optimizer, other, tmp_path)
    inputs, _ = network.batch()
    with torch.no_grad():
        assert torch.equal(outputs(other.eval(), inputs), outputs(model.eval(), inputs))
    ours, theirs = topologies(model), topologies(other)
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in ours)


@pytest.mark.parametrize("name", ["BERT", "ViT"])
def test_a_dense_copy_is_an_ordinary_checkpoint_of_transformers(name, tmp_path):
    network = NETWORKS[name]
    model = sparsify(network.build(), 0.8).eval()
    densify(model).save_pretrained(tmp_path)
    dense = type(network.build()).from_pretrained(tmp_path).eval()
    inputs, _ = network.batch()
    with torch.no_grad():
        assert close(outputs(model, inputs), outputs(dense, inputs), 1e-5)
    ours, theirs = topologies(model), topologies(sparsify(dense))
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in ours)
