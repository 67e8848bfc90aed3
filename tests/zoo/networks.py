"""The networks of the model zoos: random weights, small configurations, one batch each."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from tests.own_network import run_blocks
from truly_sparse import sparse_layers


def timm_network(name, **sizes):
    import timm

    return timm.create_model(name, num_classes=10, **sizes)


def transformers_network(name, **sizes):
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class(**sizes))


@dataclass(frozen=True)
class Network:
    """A network of a package.

    Attributes:
        package: the package that it comes from.
        maker: makes it from ``name`` and ``sizes``.
        name: what the package calls it.
        sizes: its configuration.
        takes: name of its input; a batch is made for it.
    """

    package: str
    maker: Callable[..., nn.Module]
    name: str
    sizes: dict[str, object] = field(default_factory=dict)
    takes: str = "x"

    def build(self, seed=0):
        """Return the network with random weights."""
        if self.name == "GPT2LMHeadModel":
            run_blocks("convert", "adapter")  # for its Conv1D layers
        torch.manual_seed(seed)
        return self.maker(self.name, **self.sizes)

    def batch(self):
        """Return inputs by name, and a label for each image or word."""
        generator = torch.Generator().manual_seed(0)
        if self.takes == "input_ids":
            return {"input_ids": torch.randint(1, 100, (4, 16), generator=generator)}, torch.arange(64) % 10
        side = self.sizes.get("img_size", self.sizes.get("image_size", 64))
        return {self.takes: torch.randn(4, 3, side, side, generator=generator)}, torch.arange(4)


def timm_(name, **sizes):
    return Network("timm", timm_network, name, sizes)


def transformers_(name, takes, **sizes):
    return Network("transformers", transformers_network, name, sizes, takes)


VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
BERT = VIT | {"vocab_size": 100, "max_position_embeddings": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
GPT2 = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0}
GPT2 |= {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 32}
NETWORKS = {
    "resnet18": timm_("resnet18", channels=(16, 32, 48, 64)),
    "ViT-tiny": timm_("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48),
    "EfficientNet-B0": timm_("efficientnet_b0"),
    "GPT-2": transformers_("GPT2LMHeadModel", "input_ids", **GPT2),
    "BERT": transformers_("BertForMaskedLM", "input_ids", **BERT, **NO_DROPOUT),
    "ViT": transformers_(
        "ViTForImageClassification", "pixel_values", **VIT, image_size=32, patch_size=8, num_labels=10
    ),
}


def outputs(model, inputs):
    """Return what the network says about each image or word: ``[..., classes]``."""
    result = model(**inputs)
    return result if torch.is_tensor(result) else result.logits


def loss_of(model, inputs, labels):
    logits = outputs(model, inputs)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels)


def topologies(model):
    return {name: layer.active() for name, layer in sparse_layers(model).items()}
