"""Conversion in one step draws what a mask would hold, makes no mask, and copies no dense weight that it replaces."""

import copy
import re
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from truly_sparse import (
    InvalidArgumentError,
    SparseConv2d,
    SparseLinear,
    densify,
    fuse,
    layer_nnz,
    sparse_layers,
    sparsify,
)
from truly_sparse.arguments import shown
from tutorial_lib import TutorialCNN, mask_model


class LargestNewTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation of torch makes; views do not count."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        made = [x for x in tree_leaves(result) if torch.is_tensor(x) and not x.is_meta]
        self.numel = max([self.numel, *(x.numel() for x in made if x.untyped_storage().data_ptr() not in given)])
        return result


@pytest.mark.parametrize("scheme", ["uniform", "er", "erk"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_step_gives_what_a_masked_model_becomes(scheme, layout):
    torch.manual_seed(0)
    model = TutorialCNN().to(memory_format=layout).eval()
    model.conv2.train()
    model.fc2.weight.requires_grad_(False)
    with torch.no_grad():
        model.fc1.weight[::2] = 0  # weights that are zero belong to the topology if they are drawn
    options = {"scheme": scheme, "seed": 3, "exclude": ("fc4", "conv1")}
    ours = sparsify(model, 0.9, **options)
    expected = sparsify(mask_model(model, 0.9, **options), exclude=options["exclude"])
    assert list(sparse_layers(ours)) == ["conv2", "fc1", "fc2", "fc3"]
    assert [type(ours.get_submodule(name)) for name in ("fc4", "conv1")] == [nn.Linear, nn.Conv2d]
    assert ours.state_dict().keys() == expected.state_dict().keys()
    assert all(map(torch.equal, ours.state_dict().values(), expected.state_dict().values()))
    for a, b in zip(ours.modules(), expected.modules(), strict=True):
        assert (type(a), a.training) == (type(b), b.training)
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
    x = torch.randn(3, 1, 28, 28)
    assert torch.equal(ours(x), expected(x))


def test_one_step_makes_nothing_of_the_dense_size():
    model = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 1000))
    for _ in range(2):  # the first time, torch imports modules of its own
        tracemalloc.start()
        with LargestNewTensor() as made:
            sparse = sparsify(model, 0.99)
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    nnz = sum(layer.index.nnz for layer in sparse_layers(sparse).values())
    assert nnz == 20_000 and made.numel <= 3 * nnz
    assert arrays < 1_000_000  # bytes; a boolean mask of one layer has as many


def test_the_copy_shares_nothing_and_the_model_is_not_changed():
    torch.manual_seed(0)
    model = TutorialCNN()
    before = copy.deepcopy(model.state_dict())
    sparse = sparsify(model, 0.9, exclude=("fc4",))
    with torch.no_grad():
        for tensor in sparse.parameters():
            tensor.fill_(7)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


def test_a_layer_is_replaced_wherever_the_model_holds_it():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
            self.order = [self.a, self.b]  # not a ModuleList

        def forward(self, x):
            for layer in self.order:
                x = layer(x)
            return x

    model, x = Listed(), torch.randn(4, 6)
    sparse = sparsify(model)
    assert [type(layer) for layer in sparse.order] == [SparseLinear] * 2 and sparse.order[0] is sparse.a
    torch.testing.assert_close(sparse(x), model(x))
    torch.testing.assert_close(densify(sparse)(x), model(x))


def test_a_model_that_is_one_layer():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, 3, padding=1, bias=False)
    sparse, x = sparsify(layer, 0.5), torch.randn(2, 2, 5, 5)
    assert type(sparse) is SparseConv2d and sparse.index.nnz == 36 and sparse.bias is None
    torch.testing.assert_close(densify(sparse)(x), sparse(x))


def test_layers_that_are_not_included_stay_as_they_are():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    assert list(sparse_layers(sparsify(model, include=("1",)))) == ["1"]
    masked = mask_model(model, 0.5)
    assert type(sparsify(masked, exclude=("0",))[0]) is type(masked[0])


@pytest.mark.parametrize("kind", ["masked", "truly sparse", "fused"])
def test_a_topology_is_drawn_for_a_dense_model_only(kind):
    model = mask_model(nn.Sequential(nn.Linear(6, 6)), 0.5)
    model = {"masked": lambda m: m, "truly sparse": sparsify, "fused": lambda m: fuse(sparsify(m))}[kind](model)
    with pytest.raises(InvalidArgumentError, match="holds sparse layers"):
        sparsify(model, 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), 0.999])
def test_a_sparsity_out_of_range(sparsity):
    with pytest.raises(InvalidArgumentError, match=f"sparsity={sparsity}"):
        sparsify(nn.Linear(6, 6), sparsity)


@pytest.mark.parametrize("sparsity", ["0.9", {"fc1": 0.9}, [0.9], torch.tensor([0.9]), True, torch.tensor(1.0)])
@pytest.mark.parametrize("convert", [sparsify, mask_model, layer_nnz])
def test_a_sparsity_that_is_no_number(convert, sparsity):
    with pytest.raises(
        InvalidArgumentError, match=re.escape(f"sparsity={shown(sparsity)}; use a number from 0 (dense)")
    ):
        convert(nn.Linear(6, 6), sparsity)


@pytest.mark.parametrize("sparsity", [torch.tensor(0.5), np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
@pytest.mark.parametrize("convert", [sparsify, mask_model])
def test_a_sparsity_in_other_kinds_of_numbers(convert, sparsity):
    assert len(convert(nn.Linear(6, 6), sparsity).active()) == 18


@pytest.mark.parametrize("convert", [sparsify, densify, mask_model])
def test_a_class_in_place_of_a_model(convert):
    with pytest.raises(InvalidArgumentError, match="model=Linear is a class; give an instance"):
        convert(nn.Linear)


@pytest.mark.parametrize("convert", [sparsify, mask_model, layer_nnz])
@pytest.mark.parametrize(
    ("exclude", "told"), [(["haed"], "'haed'"), (["1", "blocks.*"], r"'blocks\.\*'"), ([nn.LSTM], "LSTM")]
)
def test_what_excludes_nothing_is_refused(convert, exclude, told):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    message = f"exclude={told} matches no layer or module; use names such as 0, 1, or classes"
    with pytest.raises(InvalidArgumentError, match=message):
        convert(model, 0.5, exclude=exclude)


def test_parts_of_an_adapted_module_can_be_excluded():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    for exclude in (["*.q_proj"], ["self_attn"], [nn.MultiheadAttention], ["norm1"]):
        sparse = sparsify(model, 0.5, exclude=exclude)
        sparsify(mask_model(model, 0.5, exclude=exclude), exclude=exclude)
        assert ("self_attn.q_proj" in sparse_layers(sparse)) == (exclude == ["norm1"])


@pytest.mark.parametrize("convert", [sparsify, mask_model, layer_nnz])
def test_blocks_that_divide_no_layer(convert):
    model = nn.Sequential(nn.Linear(32, 256), nn.Linear(256, 4))
    message = "structure=3×5 divides none of these layers; give divisors of their sizes such as 4×4"
    with pytest.raises(InvalidArgumentError, match=message):
        convert(model, 0.5, structure=(3, 5))
    assert convert(model, 0.5, structure=(3, 4))  # 1×4 in both


def test_a_topology_without_values_for_its_connections():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 6)))
    state, loaded = sparsify(model, 0.5).state_dict(), sparsify(model, 0.8)
    state["1.0.values"] = state["1.0.values"][:-1]
    before = copy.deepcopy(loaded.state_dict())
    message = r"'1\.0': .*has 18 connections, this layer 7, and there are no values for them"
    for wrong in (state, {"1.0._extra_state": state["1.0._extra_state"]}):
        with pytest.raises(InvalidArgumentError, match=message):
            loaded.load_state_dict(wrong, strict=False)
    assert all(map(torch.equal, before.values(), loaded.state_dict().values()))


def test_a_foreign_sparsifiable_layer_must_have_a_plain_form():
    masked = mask_model(nn.Sequential(nn.Linear(6, 6)), 0.5)
    masked[0].to_dense_layer = nn.ReLU
    with pytest.raises(InvalidArgumentError, match=r"return nn\.Linear, nn\.Conv1d or nn\.Conv2d"):
        sparsify(masked)


@pytest.mark.parametrize("options", [{"scheme": "erk"}, {"seed": 1}])
def test_settings_of_a_draw_without_a_sparsity(options):
    with pytest.raises(InvalidArgumentError, match="sparsity=None; give a number"):
        sparsify(nn.Linear(6, 6), **options)


@pytest.mark.parametrize("convert", [sparsify, densify])
def test_what_trains_is_kept_also_without_gradients(convert):
    model = mask_model(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), 0.5)
    model[1].weight.requires_grad_(False)
    with torch.no_grad():
        converted = convert(model)
    assert [next(layer.parameters()).requires_grad for layer in converted] == [True, False]
