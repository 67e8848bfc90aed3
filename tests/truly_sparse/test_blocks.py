"""Topologies of blocks: budgets, draws, rules that see blocks as units, and layers that keep them whole."""

import copy
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse import (
    SET,
    SNFS,
    DynamicSparsity,
    GradualPruning,
    InvalidArgumentError,
    PerWeightAdam,
    RigL,
    SparseConv2d,
    SparseLinear,
    Structure,
    TrainingError,
    TrainingStep,
    densify,
    fuse,
    layer_nnz,
    sparse_layers,
    sparsify,
)
from truly_sparse.auto import TABLE, automatic
from truly_sparse.blocks import BlocksOf, units_of
from truly_sparse.report import sparsity_by_layer
from truly_sparse.structure import block_of, fitting, grid, in_grid_rows, whole_blocks
from truly_sparse.topology import initial_topology
from tutorial_lib import TutorialCNN, load_checkpoint, mask_model, save_checkpoint, sparsity_report

SHAPES = [(12, 16), (8, 4, 3, 3), (16, 1, 3, 3), (10, 7)]
STRUCTURES = [(1, 1), (4, 1), (1, 4), (4, 4), (8, 8), (16, 1)]
structures = pytest.mark.parametrize("structure", STRUCTURES, ids="{0[0]}x{0[1]}".format)


def are_whole(connections, shape, structure):
    """Tell whether connections are whole blocks."""
    blocks = block_of(connections, shape, structure).unique()
    return torch.equal(whole_blocks(blocks, shape, structure), connections)


@structures
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_connection_is_in_one_block(structure, shape):
    of = fitting(Structure(*structure), shape)
    every = torch.arange(math.prod(shape))
    block = block_of(every, shape, of)
    assert torch.equal(block.bincount(), torch.full((math.prod(grid(shape, of)),), of.area))
    assert torch.equal(whole_blocks(block.unique(), shape, of), every)
    assert all(torch.equal(whole_blocks(b.view(1), shape, of), every[block == b]) for b in block.unique()[:5])


def test_blocks_are_numbered_by_hand():
    # 4 outputs × 4 inputs in blocks of 2×2: the grid is 2×2, and its last block holds the four last corners.
    assert whole_blocks(torch.tensor([3]), (4, 4), (2, 2)).tolist() == [10, 11, 14, 15]
    # In a convolution a block has one position of the kernel: here 2 outputs at the second of 2 positions.
    assert whole_blocks(torch.tensor([1]), (2, 1, 1, 2), (2, 1)).tolist() == [1, 3]


def test_a_layer_that_blocks_do_not_divide_gets_the_largest_smaller_ones_that_do():
    assert fitting(Structure(8, 8), (10, 84)) == (2, 4)
    assert fitting(Structure(4, 4), (16, 1, 3, 3)) == (4, 1)
    assert fitting(Structure(4, 4), (12, 4, 3, 3), groups=6) == (2, 4), "a block must not reach into another group"
    report = sparsity_report(sparsify(TutorialCNN(), 0.95, structure=(8, 8)))
    assert report["structure"].to_dict() == {
        "conv1": "8×1", "conv2": "8×8", "fc1": "8×8", "fc2": "8×8", "fc3": "8×8", "fc4": "2×8", "total": ""
    }  # fmt: skip


def test_a_report_without_blocks_has_no_column_for_them():
    assert "structure" not in sparsity_report(sparsify(TutorialCNN(), 0.95)).columns


@structures
@pytest.mark.parametrize("scheme", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95])
def test_a_budget_is_met_to_the_block(structure, scheme, sparsity):
    model = TutorialCNN()
    sizes = {name: layer.weight.numel() for name, layer in model.named_modules() if hasattr(layer, "weight")}
    counts = layer_nnz(model, sparsity, scheme, structure=structure)
    budget = round((1 - sparsity) * sum(sizes.values()))
    blocks = {name: row.structure.area for name, row in sparsity_by_layer(sparsify(model, structure=structure,
              sparsity=sparsity, scheme=scheme)).items()}  # fmt: skip
    assert all(count % blocks[name] == 0 and 0 < count <= sizes[name] for name, count in counts.items())
    room = min([blocks[name] for name in counts if counts[name] < sizes[name]], default=1)
    assert 0 <= budget - sum(counts.values()) < room


def test_too_few_weights_for_a_block_each():
    with pytest.raises(InvalidArgumentError, match="leaves 13 weights for 6 layers; a block for each needs"):
        layer_nnz(TutorialCNN(), 0.99999, structure=(4, 4))
    with pytest.raises(InvalidArgumentError, match=r"structure=.*use whole numbers of at least 1"):
        layer_nnz(TutorialCNN(), 0.9, structure=(0, 4))


@structures
@pytest.mark.parametrize("topology", ["random", "magnitude"])
def test_masked_and_truly_sparse_draw_the_same_whole_blocks(structure, topology):
    dense, how = TutorialCNN(), {"scheme": "erk", "seed": 3, "structure": structure, "topology": topology}
    masked, sparse = sparse_layers(mask_model(dense, 0.9, **how)), sparse_layers(sparsify(dense, 0.9, **how))
    for name, layer in sparse.items():
        assert layer.structure == masked[name].structure == layer.index.structure
        assert torch.equal(layer.active(), masked[name].active())
        assert are_whole(layer.active(), layer.dense_shape, layer.structure)


def test_the_largest_blocks_are_those_of_largest_norm():
    layer = nn.Linear(4, 4, bias=False)
    weight = torch.zeros(4, 4)
    weight[0, 0], weight[2:, :2] = 3.0, 1.6  # norms 3 and 3.2
    layer.weight.data = weight
    for at, largest in ((0.75, [8, 9, 12, 13]), (0.5, [0, 1, 4, 5, 8, 9, 12, 13])):
        chosen = initial_topology(nn.Sequential(layer), at, topology="magnitude", structure=(2, 2))
        assert chosen["0"].tolist() == largest


def test_automatic_blocks_are_those_of_the_measured_size_closest():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    for kind, taps in (("linear", ()), ("convolution", (3, 3))):
        for row in table[kind]:
            assert automatic((row["outputs"], row["inputs"], *taps)) == tuple(row["structure"])
            assert automatic((row["outputs"] + 1, row["inputs"] - 1, *taps)) == tuple(row["structure"])
    assert automatic((0, 5)) == tuple(table["linear"][0]["structure"])
    sparse, masked = sparsify(TutorialCNN(), 0.9, structure="auto"), mask_model(TutorialCNN(), 0.9, structure="auto")
    for one, other in zip(sparse_layers(sparse).values(), sparse_layers(masked).values(), strict=True):
        assert one.structure == other.structure == fitting(automatic(one.dense_shape), one.dense_shape)
    with pytest.raises(InvalidArgumentError, match="structure='fast'"):
        sparsify(TutorialCNN(), 0.9, structure="fast")


def test_blocks_need_a_sparsity():
    with pytest.raises(InvalidArgumentError, match="structure"):
        sparsify(TutorialCNN(), structure=(4, 4))
    with pytest.raises(InvalidArgumentError, match="structure"):
        mask_model(TutorialCNN(), None, structure=(4, 4))


def test_a_mask_of_torchs_pruning_stays_as_it_is():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    nn.utils.prune.random_unstructured(model[0], "weight", 0.5)
    sparse = sparsify(model, 0.5, structure=(4, 4))
    assert [layer.structure for layer in sparse] == [(1, 1), (4, 4)]
    assert torch.equal(sparse[0].active(), model[0].weight_mask.flatten().nonzero().squeeze(1))


# ------------------------------------------------------------------------------------------ rules and drivers


def walk(model, recipe, steps=12):
    """Train a few steps on random images in float64 and return all topologies on the way."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    driver = recipe.attach(model, optimizer, steps_per_epoch=4, total_steps=steps + 2, seed=1)
    seen = []
    for _ in range(steps):
        x, y = torch.randn(8, 4, 6, 6, dtype=torch.float64), torch.randint(8, (8,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        driver.step()
        seen.append([layer.active() for layer in driver.layers.values()])
    return seen


def same(one, other):
    return all(map(torch.equal, one, other))


def network():
    torch.manual_seed(0)
    features = nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8)).double()


def last_first(units, active, count, generator):
    """Grow the last inactive units: a rule that knows nothing of blocks."""
    free = torch.ones(math.prod(units.dense_shape), dtype=torch.bool)
    free[active] = False
    return free.nonzero().squeeze(1)[-count:]


RECIPES = {
    "SET": SET(0.5, 3),
    "SET, all layers together": dataclasses.replace(SET(0.5, 3), scope="global"),
    "RigL": RigL(0.5, 3, until=1.0),
    "sampled gradient": RigL(0.5, 3, until=1.0, grow="sampled gradient"),
    "SNFS": SNFS(0.5, 3, until=1.0),
    "own rule": SET(0.5, 3, grow=last_first),
}


@structures
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_masked_and_truly_sparse_walk_the_same_topologies(structure, recipe):
    masked = mask_model(network(), 0.7, "erk", structure=structure)
    sparse = sparsify(masked)
    ours, theirs = walk(masked, recipe), walk(sparse, recipe)
    assert all(map(same, ours, theirs))
    assert not same(ours[0], ours[-1]), "nothing was rewired"
    for layer, first, last in zip(sparse_layers(sparse).values(), ours[0], ours[-1], strict=True):
        assert len(first) == len(last) and are_whole(last, layer.dense_shape, layer.structure)


@pytest.mark.parametrize("kind", [mask_model, sparsify])
def test_the_block_of_smallest_norm_goes_and_that_of_largest_gradient_comes(kind):
    # 4×4 weights in blocks of 2×2. Blocks 0 and 1 are active. Block 0 has the larger weight, block 1 the larger norm.
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.data = torch.tensor([[2.0, 0, 1.5, 1.5], [0, 0, 1.5, 1.5], [0, 0, 0, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    model = kind(nn.Sequential(layer), 0.5, topology="magnitude", structure=(2, 2))
    assert torch.equal(torch.nonzero(mask.flatten()).squeeze(1), model[0].active())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    driver = DynamicSparsity(model, optimizer, prune_fraction=0.5, every=1, grow="gradient")
    # Gradient of block 2 (rows 2, 3; inputs 0, 1): one number of 3; of block 3: four numbers of 2, norm 4.
    gradient = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [3, 0, 2, 2], [0, 0, 2, 2]])
    x, g = torch.eye(4), gradient.T
    (model(x) * g).sum().backward()
    driver.step()
    assert block_of(model[0].active(), (4, 4), (2, 2)).unique().tolist() == [1, 3]
    kept = model[0].active_values()[:4]
    assert torch.equal(kept, torch.full((4,), 1.5)), "kept weights keep their values"


def test_units_are_root_mean_squares_of_blocks():
    layer = SparseLinear(4, 4, sparsity=0.5, structure=(2, 2), bias=False)
    units = units_of(layer)
    expected = layer.to_dense().view(2, 2, 2, 2).square().mean((1, 3)).sqrt().flatten()
    assert units.dense_shape == (2, 2) and torch.allclose(units.active_values(), expected[units.active()])
    layer.record_gradient = True
    x = torch.randn(3, 4)
    layer(x).square().sum().backward()
    dense = torch.cat(list(layer.gradient_rows())).view(2, 2, 2, 2).square().mean((1, 3)).sqrt()
    assert torch.allclose(torch.cat(list(units.gradient_rows())), dense)
    assert torch.allclose(units.gradient_at(torch.tensor([3, 0, 3])), dense.flatten()[[3, 0, 3]], rtol=1e-4)
    assert units_of(SparseLinear(4, 4)) is not units and not isinstance(units_of(SparseLinear(4, 4)), BlocksOf)


@pytest.mark.parametrize("cut", [1, 3, 5, 12])
def test_rows_of_the_grid_do_not_depend_on_how_the_rows_come(cut):
    rows = torch.randn(12, 4 * 9, dtype=torch.float64)
    whole = torch.cat(list(in_grid_rows([rows], (4, 2), 9)))
    assert torch.equal(torch.cat(list(in_grid_rows(rows.split(cut), (4, 2), 9))), whole)
    assert torch.allclose(whole, rows.view(3, 4, 2, 2, 9).square().sum((1, 3)).flatten(1))


def test_gradual_pruning_removes_whole_blocks():
    model = mask_model(network(), 0.0, structure=(4, 4))
    driver = GradualPruning(model, torch.optim.SGD(model.parameters()), sparsity=0.8, until=6, every=2)
    for _ in range(6):
        driver.step()
        for layer in driver.layers.values():
            assert are_whole(layer.active(), layer.dense_shape, layer.structure)
    assert {name: len(layer.active()) for name, layer in driver.layers.items()} == layer_nnz(model, 0.8)
    assert layer_nnz(model, 0.8) == layer_nnz(network(), 0.8, structure=(4, 4)), "layers keep their own structure"


def test_a_block_that_is_active_in_part_is_refused():
    model = mask_model(network(), 0.5, structure=(2, 2))
    mask = model[0].mask.clone()
    mask.view(-1)[model[0].active()[0]] = False
    model[0].set_mask(mask)
    driver = SET(every=1).attach(model, torch.optim.SGD(model.parameters()), steps_per_epoch=1, total_steps=9, seed=0)
    with pytest.raises(InvalidArgumentError, match="not whole blocks of structure=2×2"):
        driver.step()


def test_weights_that_are_no_numbers_leave_blocks_alone():
    model = sparsify(network(), 0.5, structure=(4, 4))
    driver = SET(every=1).attach(model, torch.optim.SGD(model.parameters()), steps_per_epoch=1, total_steps=9, seed=0)
    before = model[0].active()
    with torch.no_grad():
        model[0].values[3] = math.nan
    with pytest.raises(TrainingError, match="not finite"):
        driver.step()
    assert torch.equal(model[0].active(), before)


# ------------------------------------------------------------------------------------------ layers on their way


@structures
def test_blocks_survive_every_conversion(structure):
    dense = network().float()
    masked = mask_model(dense, 0.7, structure=structure)
    sparse, x = sparsify(masked), torch.randn(5, 4, 6, 6)
    wanted = [layer.structure for layer in sparse_layers(masked).values()]
    for model in (sparse, copy.deepcopy(sparse), copy.deepcopy(masked), fuse(sparse), sparsify(copy.deepcopy(masked))):
        assert [layer.structure for layer in sparse_layers(model).values()] == wanted
        torch.testing.assert_close(model(x), masked(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(densify(sparse)(x), masked(x), rtol=1e-4, atol=1e-5)
    assert [layer.structure for layer in sparsify(densify(sparse)) if hasattr(layer, "structure")] == [(1, 1)] * 4


@pytest.mark.parametrize("kind", [mask_model, sparsify])
def test_a_resumed_run_walks_on_in_blocks(kind, tmp_path):
    def start():
        model = kind(network(), 0.7, structure=(4, 4))
        optimizer = torch.optim.Adam(model.parameters())
        return model, optimizer, RigL(0.5, 2).attach(model, optimizer, steps_per_epoch=4, total_steps=40, seed=0)

    def train(model, optimizer, driver, steps):
        for _ in range(steps):
            x = torch.linspace(-1, 1, 8 * 144, dtype=torch.float64).roll(7 * driver.steps).view(8, 4, 6, 6)
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.arange(8)).backward()
            optimizer.step()
            driver.step()

    whole, parts = start(), start()
    train(*whole, 12)
    train(*parts, 6)
    names = ("model", "optimizer", "driver")
    save_checkpoint(tmp_path / "run", **dict(zip(names, parts, strict=True)))
    resumed = start()
    load_checkpoint(tmp_path / "run", **dict(zip(names, resumed, strict=True)))
    train(*resumed, 6)
    for one, other in zip(whole[2].layers.values(), resumed[2].layers.values(), strict=True):
        assert torch.equal(one.active(), other.active()) and torch.equal(one.active_values(), other.active_values())


def test_a_topology_of_another_structure_is_not_loaded():
    plain, blocks = (sparsify(network(), 0.75, structure=of) for of in ((1, 1), (4, 4)))
    before = blocks[5].active()
    assert len(plain[5].values) == len(before), "the number of connections is not what is refused"
    with pytest.raises(InvalidArgumentError, match="not whole blocks"):
        blocks[5].set_extra_state(plain[5].get_extra_state())
    assert torch.equal(blocks[5].active(), before)


@pytest.mark.parametrize("convert", [mask_model, sparsify])
def test_a_layer_takes_nothing_from_a_state_of_another_structure(convert):
    plain, blocks = (convert(nn.Linear(32, 16), 0.75, structure=of) for of in ((1, 1), (4, 4)))
    before = blocks.active(), blocks.active_values()
    with pytest.raises(InvalidArgumentError, match="not whole blocks"):
        blocks.load_state_dict(plain.state_dict())
    assert torch.equal(blocks.active(), before[0]) and torch.equal(blocks.active_values(), before[1])
    blocks.load_state_dict(convert(nn.Linear(32, 16), 0.75, seed=1, structure=(4, 4)).state_dict())


def test_a_layer_that_can_hold_a_block_holds_one():
    assert len(SparseLinear(64, 64, sparsity=0.995, structure=(8, 8)).values) == 64
    assert len(SparseLinear(2, 2, sparsity=0.95).values) == 1


@structures
def test_a_step_in_one_call_rewires_like_torchs_loop(structure):
    dense = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8))
    models = [convert(sparsify(dense, 0.7, structure=structure)) for convert in (fuse, copy.copy)]
    optimizers = [PerWeightAdam(model.parameters(), lr=1e-2) for model in models]
    drivers = [
        DynamicSparsity(model, optimizer, prune_fraction=0.3, every=3)
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    step = TrainingStep(models[0], optimizers[0])
    for seed in range(9):
        torch.manual_seed(seed)
        x, y = torch.randn(16, 64), torch.randint(8, (16,))
        step(x, y)
        optimizers[1].zero_grad()
        F.cross_entropy(models[1](x), y).backward()
        optimizers[1].step()
        for driver in drivers:
            driver.step()
    for one, other in zip(drivers[0].layers.values(), drivers[1].layers.values(), strict=True):
        assert torch.equal(one.active(), other.active())
        torch.testing.assert_close(one.active_values(), other.active_values(), rtol=1e-3, atol=1e-4)


def test_a_layer_describes_its_blocks():
    assert "structure=4×4" in repr(SparseLinear(8, 8, structure=(4, 4)))
    assert "structure=4×1" in repr(SparseConv2d(1, 8, 3, structure=(4, 1)))
    assert "structure" not in repr(SparseLinear(8, 8))
