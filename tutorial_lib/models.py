"""The tutorial's network, and the results published for it (the tutorial's slides; MNIST, 10 epochs, 95% sparsity)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import override

from truly_sparse.arguments import check_memory, require


class TutorialCNN(nn.Module):
    """The tutorial's over-parameterised digit classifier: 1,345,642 parameters, 1,343,456 of them weights.

    conv 1→16 and conv 16→32 (3×3, padding 1), each followed by ReLU and a 2×2 max-pool,
    then fully connected 1568→128→1000→1000→10.

    Args:
        width: factor by which the channels and neurons of every hidden layer are multiplied (at least one remains).

    Raises:
        InvalidArgumentError: ``width`` is not positive, or the network does not fit into memory.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        require(width > 0, "width", width, "use a positive number, 1 for the tutorial's network")
        c1, c2, f1, f2, f3 = (max(1, round(float(width) * size)) for size in (16, 32, 128, 1000, 1000))
        check_memory("width", width, 4 * (9 * c1 * c2 + 49 * c2 * f1 + f1 * f2 + f2 * f3))
        self.conv1 = nn.Conv2d(1, c1, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(c1, c2, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(c2 * 7 * 7, f1)
        self.fc2 = nn.Linear(f1, f2)
        self.fc3 = nn.Linear(f2, f3)
        self.fc4 = nn.Linear(f3, 10)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images, float ``[B, 1, 28, 28]``, to logits ``[B, 10]``."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # [B, 16, 14, 14]
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # [B, 32, 7, 7]
        x = x.flatten(1)  # [B, 1568]
        x = F.relu(self.fc1(x))  # [B, 128]
        x = F.relu(self.fc2(x))  # [B, 1000]
        x = F.relu(self.fc3(x))  # [B, 1000]
        return self.fc4(x)  # [B, 10]


def count_parameters(model: nn.Module) -> int:
    """Return the number of entries of all parameters: weights, masked ones included, and biases."""
    return sum(parameter.numel() for parameter in model.parameters())


# Test accuracy in percent, test loss, and number of parameters.
PUBLISHED_RESULTS = {
    "dense": {"test_accuracy": 98.98, "test_loss": 0.0449, "parameters": "1.3M"},
    "set_uniform": {"test_accuracy": 96.71, "test_loss": 0.0992, "parameters": "65K"},
}

# Inference on 100 samples: milliseconds, mean of 10 runs.
PUBLISHED_INFERENCE_MS = {
    "Dense+Mask (GPU)": 0.68,
    "Dense+Mask (CPU)": 25.03,
    "Truly sparse CSR (CPU)": 1351.50,
    "Truly sparse CSR (GPU)": 1.04,
}
