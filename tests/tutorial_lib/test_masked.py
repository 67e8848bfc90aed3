"""Masked layers: the stated function, gradients and bookkeeping."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse import InvalidArgumentError, TrainingError, densify, sparse_layers
from tutorial_lib import MaskedConv2d, MaskedLinear, TutorialCNN, mask_model, sparsity_report


def random_mask(layer, density=0.3):
    layer.set_mask(torch.rand(layer.weight.shape) < density)
    return layer


@pytest.fixture(params=["linear", "conv", "conv strided grouped"])
def layer_and_input(request):
    torch.manual_seed(0)
    if request.param == "linear":
        return random_mask(MaskedLinear(7, 5)), torch.randn(4, 7)
    if request.param == "conv":
        return random_mask(MaskedConv2d(3, 4, 3, padding=1, bias=False)), torch.randn(2, 3, 6, 6)
    return random_mask(MaskedConv2d(4, 6, 3, stride=2, dilation=2, groups=2, padding=2)), torch.randn(2, 4, 9, 9)


def dense_function(layer, weight, x):
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def test_equals_a_dense_layer_with_zeros(layer_and_input):
    layer, x = layer_and_input
    assert torch.equal(layer(x), dense_function(layer, layer.weight * layer.mask, x))
    assert torch.allclose(layer.to_dense_layer()(x), layer(x), atol=1e-6)


def test_linear_gradients_by_hand():
    torch.manual_seed(0)
    layer, x, upstream = random_mask(MaskedLinear(4, 3)), torch.randn(5, 4, requires_grad=True), torch.randn(5, 3)
    layer.record_gradient = True
    layer(x).backward(upstream)
    dense = upstream.T @ x.detach()
    assert torch.allclose(layer.weight.grad, dense * layer.mask)
    assert torch.allclose(torch.cat(list(layer.gradient_rows())), dense)
    assert torch.allclose(layer.gradient_at(torch.tensor([0, 5])), dense.flatten()[[0, 5]])
    assert torch.allclose(x.grad, upstream @ (layer.weight * layer.mask))
    assert torch.allclose(layer.bias.grad, upstream.sum(0))


def test_recorded_gradient_adds_up_and_is_forgotten(layer_and_input):
    layer, x = layer_and_input
    with pytest.raises(TrainingError, match="no gradient was recorded"):
        list(layer.gradient_rows())
    layer.record_gradient = True
    layer(x).sum().backward()
    once = torch.cat(list(layer.gradient_rows()))
    layer(x).sum().backward()
    assert torch.allclose(torch.cat(list(layer.gradient_rows())), 2 * once, atol=1e-5)
    layer.record_gradient = False
    layer(x).sum().backward()
    with pytest.raises(TrainingError):
        layer.gradient_at(torch.tensor([0]))


def test_gradcheck():
    torch.manual_seed(0)
    layer = random_mask(MaskedLinear(4, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(layer, torch.randn(2, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rewire_moves_exactly_what_it_is_told(layer_and_input, memory_format):
    layer, _ = layer_and_input
    layer = layer.to(memory_format=memory_format)
    before = layer.weight.detach().clone()
    active = layer.active()
    inactive = (~layer.mask).reshape(-1).nonzero().squeeze(1)
    kept, grown, values = active[2:], inactive[:2], torch.tensor([0.5, -0.5])
    state = torch.arange(1.0, before.numel() + 1).view_as(before)
    if before.dim() == 4:
        state = state.to(memory_format=memory_format)
    moved = layer.rewire(kept, grown, values)(state, -1.0)
    flat, new, old = (t.reshape(-1) for t in (moved, layer.weight.detach(), before))
    assert torch.equal(layer.active(), torch.cat([kept, grown]).sort().values)
    assert torch.equal(new[kept], old[kept]) and torch.equal(new[grown], values) and (new[active[:2]] == 0).all()
    assert (
        torch.equal(flat[kept], state.reshape(-1)[kept])
        and (flat[grown] == -1).all()
        and (flat[active[:2]] == -1).all()
    )
    assert moved.stride() == layer.weight.stride()  # fused optimizers read both side by side in memory


def test_wrong_mask():
    layer = MaskedLinear(3, 2)
    for bad in (torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool)):
        with pytest.raises(InvalidArgumentError, match="mask=Tensor"):
            layer.set_mask(bad)


def test_mask_model_keeps_the_original_and_everything_but_weights(small_cnn):
    before = copy.deepcopy(small_cnn.state_dict())
    random_state = torch.random.get_rng_state()
    masked = mask_model(small_cnn, sparsity=0.9, scheme="erk", seed=3)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in small_cnn.state_dict().items())
    assert set(sparse_layers(masked)) == {"features.0", "hidden", "out"}
    assert torch.equal(masked.hidden.bias, small_cnn.hidden.bias) and masked.out.bias is None
    assert type(masked.features[1]) is nn.BatchNorm2d
    for name, layer in sparse_layers(masked).items():
        dense = small_cnn.get_submodule(name).weight
        assert torch.equal(layer.weight, dense * layer.mask)
    report = sparsity_report(masked)
    assert report.loc["total", "active"] == round(0.1 * report.loc["total", "weights"])


def test_mask_model_is_seeded_and_filtered(small_cnn):
    a, b, c = (mask_model(small_cnn, 0.9, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.hidden.mask, b.hidden.mask) and not torch.equal(a.hidden.mask, c.hidden.mask)
    partly = mask_model(small_cnn, 0.5, exclude=["features.*"])
    assert set(sparse_layers(partly)) == {"hidden", "out"}


def test_mask_model_of_a_single_layer():
    masked = mask_model(nn.Linear(10, 10), 0.9)
    assert isinstance(masked, MaskedLinear) and len(masked.active()) == 10


def test_a_masked_model_is_not_masked_again(small_cnn):
    with pytest.raises(InvalidArgumentError, match="densify"):
        mask_model(mask_model(small_cnn, 0.9), 0.5)


def test_frozen_layers_stay_frozen_and_nan_goes_with_its_connection(small_cnn):
    small_cnn.hidden.requires_grad_(False)
    small_cnn.out.weight.data.fill_(float("nan"))
    masked = mask_model(small_cnn, 0.9)
    assert not masked.hidden.weight.requires_grad and masked.out.weight.requires_grad
    assert int(masked.out.weight.isnan().sum()) == len(masked.out.active())


def test_densify_computes_the_same(small_cnn):
    masked, x = mask_model(small_cnn, 0.8).eval(), torch.randn(3, 1, 28, 28)
    dense = densify(masked)
    assert not sparse_layers(dense) and not dense.training
    assert torch.allclose(masked(x), dense(x), atol=1e-6)


def test_the_topology_is_in_the_state_dict(small_cnn):
    a, b = mask_model(small_cnn, 0.9, seed=0), mask_model(small_cnn, 0.9, seed=1)
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(a.hidden.mask, b.hidden.mask) and torch.equal(a.eval()(x), b.eval()(x))


def test_half_and_double_and_copies(small_cnn):
    masked = copy.deepcopy(mask_model(small_cnn, 0.9)).double()
    assert masked.hidden.mask.dtype == torch.bool
    assert masked(torch.randn(2, 1, 28, 28, dtype=torch.float64)).dtype == torch.float64


def test_report_of_the_tutorial_network():
    report = sparsity_report(mask_model(TutorialCNN(), 0.95))
    assert report.loc["total", "weights"] == 1_343_456 and report.loc["total", "active"] == 67_173
    assert "active=500/10000" in repr(mask_model(TutorialCNN(), 0.95).fc4)
