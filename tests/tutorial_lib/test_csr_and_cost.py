"""CSR inference equals the masked network; costs are counted, not guessed."""

import pytest
import torch
from torch import nn

from truly_sparse import InvalidArgumentError, densify
from tutorial_lib import TutorialCNN, mask_model, multiply_adds, storage_bytes, to_csr


@pytest.mark.parametrize("backend", ["torch", "scipy"])
@pytest.mark.parametrize("batch", [1, 5])
def test_csr_computes_the_same(small_cnn, backend, batch):
    masked, x = mask_model(small_cnn, 0.9).eval(), torch.randn(batch, 1, 28, 28)
    with torch.no_grad():
        assert torch.allclose(to_csr(masked, backend)(x), masked(x), atol=1e-5)


def test_csr_of_the_whole_network_holds_no_dense_weight():
    masked = mask_model(TutorialCNN(), 0.95)
    csr = to_csr(masked)
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.allclose(csr(x), masked(x), atol=1e-5)
    # Values, column indices, row pointers (one more than rows per layer), biases.
    rows = 16 + 32 + 128 + 1000 + 1000 + 10
    assert storage_bytes(csr) == 4 * (67_173 + 67_173 + rows + 6 + rows)


def test_csr_with_empty_rows():
    masked = mask_model(nn.Linear(10, 10), 0.95)
    x = torch.randn(4, 10)
    for backend in ("torch", "scipy"):
        assert torch.allclose(to_csr(masked, backend)(x), masked(x), atol=1e-6)
        assert torch.allclose(to_csr(masked, backend)(x.view(2, 2, 10)), masked(x).view(2, 2, 10), atol=1e-6)


def test_csr_refusals(small_cnn):
    with pytest.raises(InvalidArgumentError, match="no sparse layers"):
        to_csr(small_cnn)
    with pytest.raises(InvalidArgumentError, match="unknown backend"):
        to_csr(mask_model(small_cnn, 0.9), "mkl")
    grouped = mask_model(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), 0.5)
    with pytest.raises(InvalidArgumentError, match="groups=1"):
        to_csr(grouped)


def test_bytes_by_hand():
    masked = mask_model(TutorialCNN(), 0.95)
    assert storage_bytes(densify(masked)) == 4 * 1_345_642
    assert storage_bytes(masked) == 4 * 1_345_642 + 1_343_456  # the mask is one byte a weight


def test_multiply_adds_by_hand():
    masked = mask_model(TutorialCNN(), 0.95)
    work = multiply_adds(masked, (1, 28, 28))
    expected = {
        "conv1": 144 * 784,
        "conv2": 4608 * 196,
        "fc1": 200_704,
        "fc2": 128_000,
        "fc3": 1_000_000,
        "fc4": 10_000,
    }
    assert work["executed"].drop("total").to_dict() == expected
    assert work.loc["conv2", "useful"] == 231 * 196 and work.loc["fc3", "useful"] == 50_000
    assert work.loc["total", "executed"] == sum(expected.values())
    patches = mask_model(nn.Sequential(nn.Linear(8, 4)), 0.5)  # applied to each of 5 × 6 places
    assert multiply_adds(patches, (5, 6, 8)).loc["total", "executed"] == 5 * 6 * 32
    assert not any(module._forward_hooks for module in masked.modules())
