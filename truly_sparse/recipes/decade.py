"""The table of the decade's methods: the one source for pages and pictures of them."""

from __future__ import annotations

from dataclasses import dataclass

BOTH = "masked and truly sparse"


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        name: what it is called.
        year: of publication.
        authors: as cited.
        title: of the paper.
        link: to the paper.
        code: its name in ``truly_sparse``; "" if it is not there.
        builds_on: names of methods of the table that it changes.
        prunes_by: what decides that a connection goes.
        grows_by: what decides that one comes; "" if none does.
        budget: what of the number of weights stays.
        dense: what has the size of the dense weights, and when; "nothing" if memory is proportional to the nonzeros.
        layers: on which layers it runs here.
        claim: what the paper's abstract claims, and on which task; tasks may be from its text.
        own: when and how much it changes by its own settings in ``benchmarks/decade.py``, and where these are from.
        compared_with: public code with which the rule was compared; "" if with none.
    """

    name: str
    year: int
    authors: str
    title: str
    link: str
    code: str
    builds_on: tuple[str, ...]
    prunes_by: str
    grows_by: str
    budget: str
    dense: str
    layers: str
    claim: str
    own: str
    compared_with: str = ""


PER_LAYER = "each layer keeps its number"
IN_TOTAL = "the total stays, layers exchange weights"
STREAMED = "the gradient of all connections in blocks of rows, never whole, in the last step before a rewiring"

METHODS = (
    Method(
        "GMP",
        2017,
        "Zhu & Gupta",
        "To prune, or not to prune: exploring the efficacy of pruning for model compression",
        "https://arxiv.org/abs/1710.01878",
        "GradualMagnitudePruning",
        (),
        "magnitude, in each layer",
        "",
        "falls from dense to the final one",
        "all weights at the start; with masked layers during the whole training",
        BOTH,
        "large sparse networks beat small dense ones of equal memory; 10 times fewer weights cost little (CNNs, LSTMs)",
        "every 100 steps until 75% of the training, cubic (the paper: every 100 to 1,000 steps)",
    ),
    Method(
        "Deep Rewiring",
        2018,
        "Bellec, Kappel, Maass & Legenstein",
        "Deep Rewiring: Training very sparse deep networks",
        "https://arxiv.org/abs/1711.05136",
        "DeepRewiring",
        (),
        "a weight whose sign would flip, after gradient, L1 prior and noise, in every step",
        "chance",
        PER_LAYER,
        "nothing",
        BOTH,
        "very sparse networks train with a minor loss of accuracy (MNIST, CIFAR-10, TIMIT)",
        "in every step; α and noise of the authors' program",
        "https://github.com/guillaumeBellec/deep_rewiring",
    ),
    Method(
        "SET",
        2018,
        "Mocanu, Mocanu, Stone, Nguyen, Gibescu & Liotta",
        "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network science",
        "https://www.nature.com/articles/s41467-018-04316-3",
        "SET",
        (),
        "magnitude, in each layer",
        "chance",
        PER_LAYER,
        "nothing",
        BOTH,
        "quadratically fewer parameters with no decrease in accuracy (15 datasets)",
        "30% after each epoch, to the end: the paper's",
    ),
    Method(
        "SNIP",
        2019,
        "Lee, Ajanthan & Torr",
        "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
        "https://arxiv.org/abs/1810.02340",
        "snip",
        (),
        "|weight · gradient| of the dense network, over all layers, once before training",
        "",
        "the total stays, each layer's number follows from the scores",
        "the dense network and its gradient, once before training",
        BOTH,
        "sparse networks with virtually the accuracy of the dense one (MNIST, CIFAR-10, Tiny ImageNet)",
        "once, with ten images of each class; the weights that were scored are trained",
        "https://github.com/ganguli-lab/Synaptic-Flow",
    ),
    Method(
        "IMP",
        2019,
        "Frankle & Carbin",
        "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
        "https://arxiv.org/abs/1803.03635",
        "lottery_ticket",
        (),
        "magnitude after training, over all layers, in rounds with rewinding",
        "",
        "the total stays, each layer's number follows from the scores",
        "the dense network in the first of many trainings",
        BOTH,
        "networks of less than 10 to 20% of the size train to the accuracy of the dense one (MNIST, CIFAR-10)",
        "rounds of 20%, each a training with 1,000 images; weights of the start",
    ),
    Method(
        "DSR",
        2019,
        "Mostafa & Wang",
        "Parameter Efficient Training of Deep Convolutional Neural Networks by Dynamic Sparse Reparameterization",
        "https://arxiv.org/abs/1902.05967",
        "DSR",
        ("SET",),
        "magnitude, below one threshold for all layers that adapts",
        "chance, shared over layers by what survived",
        IN_TOTAL,
        "nothing",
        BOTH,
        "best accuracy for a fixed number of parameters, on par with pruning a trained network (CIFAR-10, ImageNet)",
        "about 1% every 100 steps until 75%: aim and first threshold of public code",
    ),
    Method(
        "SNFS",
        2019,
        "Dettmers & Zettlemoyer",
        "Sparse Networks from Scratch: Faster Training without Losing Performance",
        "https://arxiv.org/abs/1907.04840",
        "SparseMomentum",
        ("SET",),
        "magnitude, in each layer",
        "momentum of the gradient, and shared over layers by their mean momentum",
        IN_TOTAL,
        "the momentum of all connections in every step; here from the last 20 batches, in blocks of rows",
        BOTH,
        "less error than other sparse methods (by 8, 15 and 6%: MNIST, CIFAR-10, ImageNet), and dense accuracy",
        "50% after each epoch, falling by the cosine: the authors' code",
        "https://github.com/TimDettmers/sparse_learning",
    ),
    Method(
        "RigL",
        2020,
        "Evci, Gale, Menick, Castro & Elsen",
        "Rigging the Lottery: Making All Tickets Winners",
        "https://arxiv.org/abs/1911.11134",
        "RigL",
        ("SET", "SNFS"),
        "magnitude, in each layer",
        "gradient",
        PER_LAYER,
        STREAMED,
        BOTH,
        "as accurate as dense-to-sparse training, with fewer operations than earlier methods (ResNet-50, MobileNets on "
        "ImageNet; RNNs on WikiText-103)",
        "30% every 100 steps, falling by the cosine, until 75%: the paper's",
    ),
    Method(
        "Top-KAST",
        2020,
        "Jayakumar, Pascanu, Rae, Osindero & Elsen",
        "Top-KAST: Top-K Always Sparse Training",
        "https://arxiv.org/abs/2106.03517",
        "TopKAST",
        (),
        "magnitude: each step computes with the largest weights",
        "magnitude, in a larger set that alone is updated, with an exploration regulariser",
        PER_LAYER,
        "all weights, on the side, of which the largest are chosen; gradients of the larger set only",
        BOTH,
        "comparable to or better than earlier work, sparse in both passes (ImageNet); works for language modelling",
        "computes with half of its set, chosen every 100 steps: a pair and an interval of the paper",
        "https://github.com/A-Klass/torch_topkast",
    ),
    Method(
        "GraSP",
        2020,
        "Wang, Zhang & Grosse",
        "Picking Winning Tickets Before Training by Preserving Gradient Flow",
        "https://arxiv.org/abs/2002.07376",
        "grasp",
        ("SNIP",),
        "weight · Hessian · gradient of the dense network, over all layers, once before training",
        "",
        "the total stays, each layer's number follows from the scores",
        "the dense network, its gradient and a Hessian-vector product, once before training",
        BOTH,
        "much better than the baseline at extreme sparsity (VGG, ResNet; CIFAR, Tiny ImageNet, ImageNet); VGG-16 "
        "at 80% loses 1.6 points (ImageNet)",
        "once, with ten images of each class, as in the paper; the weights that were scored are trained",
        "https://github.com/ganguli-lab/Synaptic-Flow",
    ),
    Method(
        "SynFlow",
        2020,
        "Tanaka, Kunin, Yamins & Ganguli",
        "Pruning neural networks without any data by iteratively conserving synaptic flow",
        "https://arxiv.org/abs/2006.05467",
        "synflow",
        ("SNIP",),
        "contribution to the results of the network of |weight|, over all layers, in 100 rounds, once before training, "
        "without data",
        "",
        "the total stays, each layer's number follows from the scores",
        "the dense network and its gradient, before training",
        BOTH,
        "no layer loses all its weights; competes with or beats earlier pruning before training, without data (VGG, "
        "ResNet; CIFAR, Tiny ImageNet)",
        "100 rounds, as in the paper; the weights that were scored are trained",
        "https://github.com/ganguli-lab/Synaptic-Flow",
    ),
    Method(
        "ITOP",
        2021,
        "Liu, Yin, Mocanu & Pechenizkiy",
        "Do We Actually Need Dense Over-Parameterization? In-Time Over-Parameterization in Sparse Training",
        "https://arxiv.org/abs/2102.02887",
        "ITOP",
        ("SET", "RigL"),
        "magnitude, in each layer",
        "chance (or gradient), rarer and more at once",
        PER_LAYER,
        "nothing with growth by chance",
        BOTH,
        "beats the dense network once enough connections were explored, and matches it at 98% (ResNet-34, CIFAR-100); "
        "the best sparse training (ResNet-50, ImageNet)",
        "50% every 1,500 steps, falling by the cosine: the authors' code for trainings of 100,000 steps",
        "https://github.com/Shiweiliuiiiiiii/In-Time-Over-Parameterization",
    ),
    Method(
        "GraNet",
        2021,
        "Liu, Chen, Chen, Atashgahi, Yin, Kou, Shen, Pechenizkiy, Wang & Mocanu",
        "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
        "https://arxiv.org/abs/2106.10404",
        "GraNet",
        ("GMP", "RigL"),
        "magnitude over all layers, gradually, and in each layer",
        "gradient",
        "falls from a denser start to the final one",
        STREAMED,
        BOTH,
        "the first sparse-to-sparse training to beat dense-to-sparse methods at equal length (ResNet-50, ImageNet)",
        "50% every 100 steps, falling by the cosine, until 75%, from 50% sparsity (the authors' commands: every 1,000)",
        "https://github.com/VITA-Group/GraNet",
    ),
    Method(
        "MEST",
        2021,
        "Yuan, Ma, Niu, Li, Kong, Liu and others",
        "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge",
        "https://arxiv.org/abs/2110.14032",
        "MEST",
        ("SET",),
        "|weight| + λ |gradient|, in each layer",
        "chance, less and less",
        PER_LAYER + "; the soft memory bound is left out",
        "nothing; the input and result gradient of the last batch are kept",
        BOTH,
        "more accurate than other unstructured sparse training (ImageNet), faster and with less memory",
        "20% every 5 epochs, falling linearly, until 75% (the authors' scripts: 20%, then 10%)",
    ),
    Method(
        "random ERK",
        2022,
        "Liu, Chen, Chen, Shen, Mocanu, Wang & Pechenizkiy",
        "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training",
        "https://arxiv.org/abs/2202.02643",
        "sparsify",
        ("RigL",),
        "chance, once before training, with the Erdős–Rényi-Kernel share of each layer",
        "",
        PER_LAYER,
        "nothing",
        BOTH,
        "matches the dense network where that is wide and deep; a random Wide ResNet-50 beats it (ImageNet)",
        "never",
    ),
    Method(
        "SRigL",
        2024,
        "Lasby, Golubeva, Evci, Nica & Ioannou",
        "Dynamic Sparse Training with Structured Sparsity",
        "https://arxiv.org/abs/2305.02299",
        "SRigL",
        ("RigL",),
        "magnitude, in each layer, and all of a neuron with few salient weights",
        "gradient, up to the same fan-in of all neurons",
        PER_LAYER,
        STREAMED + ", twice",
        BOTH,
        "the best structured sparse-to-sparse training; a linear layer at 90% infers faster than dense and CSR",
        "as RigL, γ = 30%: the paper's",
        "https://github.com/calgaryml/condensed-sparsity",
    ),
    Method(
        "CHT",
        2024,
        "Zhang, Zhao, Wu, Muscoloni & Cannistraci",
        "Epitopological learning and Cannistraci-Hebb network shape intelligence brain-inspired theory for "
        "ultra-sparse advantage in deep learning",
        "https://www.iclr.cc/virtual/2024/poster/18058",
        "CHT",
        ("SET",),
        "magnitude, in each layer",
        "link prediction by the topology alone (CH3-L3)",
        PER_LAYER,
        "the scores of one output at a time; no gradient",
        BOTH,
        "an advantage over dense networks with 1% of the connections",
        "30% after each epoch, to the end: the authors' code",
        "https://github.com/biomedical-cybernetics/Cannistraci-Hebb-training",
    ),
)
