"""The tutorial's helper library: data, the network, simulated layers, training, measuring, pictures and exercises."""

from . import exercises, referee_plots, schematics, viz
from .bench import Benchmark, benchmark, load_result, save_result
from .checkpoint import load_checkpoint, save_checkpoint
from .cost import multiply_adds, storage_bytes
from .csr import to_csr, torch_csr
from .data import Digits, load_data
from .exercises.predictions import Prediction, ask, reconcile
from .masked import MaskedConv2d, MaskedLinear, mask_model, sparsity_report
from .models import PUBLISHED_INFERENCE_MS, PUBLISHED_RESULTS, TutorialCNN, count_parameters
from .player import Player, topology_player
from .project import default_device, profile
from .recorder import TopologyRecorder
from .train import History, evaluate, fit

__all__ = [
    "PUBLISHED_INFERENCE_MS",
    "PUBLISHED_RESULTS",
    "Benchmark",
    "Digits",
    "History",
    "MaskedConv2d",
    "MaskedLinear",
    "Player",
    "Prediction",
    "TopologyRecorder",
    "TutorialCNN",
    "ask",
    "benchmark",
    "count_parameters",
    "default_device",
    "evaluate",
    "exercises",
    "fit",
    "load_checkpoint",
    "load_data",
    "load_result",
    "mask_model",
    "multiply_adds",
    "profile",
    "reconcile",
    "referee_plots",
    "save_checkpoint",
    "save_result",
    "schematics",
    "sparsity_report",
    "storage_bytes",
    "to_csr",
    "topology_player",
    "torch_csr",
    "viz",
]
