"""What the decade's papers claim, tried on the runs of ``benchmarks/decade.py``: the claims and their table.

How a verdict is found is in ``tools/decade_evidence.py``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pandas as pd

from tools.decade_evidence import (
    ALL,
    FOR_COMPARISON,
    MARGINS,
    MOST_FREQUENT,
    SMALL,
    TWO,
    Evidence,
    beside,
    better,
    early,
    equal,
    exploration_explains,
    gain_of_length,
    longer,
    more,
    needs,
    never_cut,
    no_less,
    overall,
    slope_over_widths,
    without_loss,
)
from tools.decade_page import Table

DRAWN = "static, SynFlow's shares"
SET, RIGL, SNFS = "SET, common", "RigL, common and own", "SNFS without sharing, common"
DENSE_START = "static, dense initialisation"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        paper: whose it is.
        says: the claim, in our words.
        shows: what would show it here.
        find: the evidence in a table of runs.
    """

    paper: str
    says: str
    shows: str
    find: Evidence


CLAIMS = (
    Claim(
        "GMP, 2017",
        "large sparse networks beat small dense ones",
        "GMP, and static, at 95% above a dense network of a quarter of the width, which has more weights",
        better(
            ("GMP, own", "dense, width 0.25"), ("static, width 1.0", "dense, width 0.25"), at=(0.95,), images=(SMALL,)
        ),
    ),
    Claim(
        "SET, 2018",
        "no decrease in accuracy, without the gradient of inactive connections",
        "matches dense at 90 and 95%",
        without_loss((SET, "dense"), at=(0.9, 0.95)),
    ),
    Claim(
        "Deep Rewiring, 2018",
        "a minor loss of accuracy",
        "matches dense at 90 and 95%",
        without_loss(("Deep Rewiring, own", "dense"), at=(0.9, 0.95)),
    ),
    Claim(
        "SNIP, 2019",
        "virtually the accuracy of the dense network",
        "matches dense at 90 and 95%",
        without_loss(("SNIP, own", "dense"), at=(0.9, 0.95)),
    ),
    Claim(
        "SNIP, 2019",
        "its topology beats a random one",
        "above static, if both draw their first weights by the same rule; all sparsities",
        better(("SNIP, common", "static"), at=ALL),
    ),
    Claim(
        "IMP, 2019",
        "a winning ticket trains to the accuracy of the dense network",
        "matches dense at 95%",
        without_loss(("IMP, own", "dense"), at=(0.95,), images=(SMALL,)),
    ),
    Claim(
        "IMP, 2019",
        "a winning ticket beats a random network of its size",
        "above static, 95 and 99%",
        better(("IMP, own", "static"), at=TWO, images=(SMALL,)),
    ),
    Claim(
        "SNFS and DSR, 2019",
        "it helps that layers exchange weights",
        "SNFS above SNFS without exchange, DSR above SET (which also prunes otherwise), 95 and 99%",
        better(("SNFS, common", SNFS), ("DSR, common", SET), at=TWO),
    ),
    Claim(
        "SNFS, 2019",
        "momentum finds better connections than the gradient",
        "above RigL, all sparsities",
        better((SNFS, RIGL), at=ALL),
    ),
    Claim(
        "Gale et al., 2019",
        "gradual pruning beats networks that are sparse from the start",
        "GMP above static, RigL, SNFS and SynFlow, 95 and 99%",
        better(*(("GMP, own", other) for other in ("static", RIGL, "SNFS, own", "SynFlow, common")), at=TWO),
    ),
    Claim(
        "RigL, 2020",
        "it beats SET at equal length",
        "above SET with the same settings, all sparsities",
        better((RIGL, SET), at=ALL),
    ),
    Claim(
        "RigL, 2020",
        "five times longer training closes the gap to dense",
        "matches dense, which is trained for the usual length; 1,000 images",
        longer(RIGL, functools.partial(no_less, margin=MARGINS[SMALL])),
    ),
    Claim(
        "RigL, 2020",
        "longer training helps because it rewires",
        "gains more by it than static, 95 and 99%; 1,000 images",
        gain_of_length(RIGL, "static"),
    ),
    Claim(
        "GraSP, 2020",
        "better than SNIP at extreme sparsity",
        "above SNIP, 99 and 99.5%",
        better(("GraSP, own", "SNIP, own"), ("GraSP, common", "SNIP, common"), at=(0.99, 0.995)),
    ),
    Claim(
        "SynFlow, 2020",
        "no layer loses all its weights",
        f"all its networks above {MOST_FREQUENT}%, the most that the same answer for all images can reach",
        never_cut("SynFlow, own", ("SNIP, own", "GraSP, own")),
    ),
    Claim("Top-KAST, 2020", "it works for language modelling", "–", needs("a language model")),
    Claim(
        "ITOP, 2021",
        "accuracy follows the share of connections that were ever active",
        "positive rank correlation among contenders of equal sparsity that grow at random and keep the layers' numbers",
        exploration_explains,
    ),
    Claim(
        "ITOP, 2021",
        "it beats dense once enough connections were explored",
        "SET, which explores more here than ITOP's own settings, with five times the length above dense; 1,000 images",
        longer(SET, more),
    ),
    Claim(
        "GraNet, 2021",
        "it beats dense-to-sparse training of equal length",
        "above GMP, 95 and 99%",
        better(("GraNet, own", "GMP, own"), at=TWO),
    ),
    Claim(
        "MEST, 2021",
        "more accurate than SET",
        "above SET with the same settings, all sparsities",
        better(("MEST, common", SET), at=ALL),
    ),
    Claim(
        "random ERK, 2022",
        "a random topology suffices for wide networks",
        "with both networks twice as wide, static at 95% matches dense",
        without_loss(("static, width 2.0", "dense, width 2.0"), at=(0.95,), images=(SMALL,)),
    ),
    Claim(
        "random ERK, 2022",
        "the wider the network, the smaller the gap to dense",
        "static − dense at 95% rises with the width; 1,000 images",
        slope_over_widths,
    ),
    Claim(
        "Evci et al., 2022",
        "first weights should be scaled by the fan-in that is left",
        "static, after one epoch: above the same with the first weights of a dense network, 95 and 99%; all of MNIST",
        early("static", DENSE_START),
    ),
    Claim(
        "this tutorial",
        "such first weights matter early only (static)",
        "no difference at the end of the training, 95 and 99%",
        equal(("static", DENSE_START), at=TWO),
    ),
    Claim(
        "Nowak et al., 2023",
        "the criterion by which connections are pruned hardly matters",
        "RigL with another one is equal to RigL, 95 and 99%",
        beside(
            equal(
                ("RigL, prunes by magnitude and gradient", RIGL),
                ("RigL, prunes by weight times gradient", RIGL),
                at=TWO,
            ),
            equal(("RigL, prunes at random", RIGL), at=TWO),
        ),
    ),
    Claim(
        "SRigL, 2024",
        "a constant fan-in costs nothing at 90%",
        "matches RigL with the same settings",
        without_loss(("SRigL, common and own", RIGL), at=(0.9,)),
    ),
    Claim(
        "CHT, 2024",
        "better than dense with 1% of the connections",
        "above dense at 99%",
        better(("CHT, own", "dense"), ("CHT, common", "dense"), at=(0.99,)),
    ),
    Claim(
        "this tutorial",
        "SynFlow is good because of how it divides the weights among the layers, not because of their places",
        "random places with SynFlow's number of weights in each layer are equal to its own, 95 and 99%",
        beside(
            equal((DRAWN, "SynFlow, common"), at=TWO), better((DRAWN, "static"), ("SynFlow, common", "static"), at=TWO)
        ),
    ),
    Claim(
        "this tutorial",
        "rewiring still gains where the layers' shares are SynFlow's",
        "RigL from such random places above the same without rewiring, 95 and 99%",
        better(("RigL, SynFlow's shares", DRAWN), at=TWO),
    ),
)


def tried_table(runs: pd.DataFrame) -> Table:
    """Return header and rows: each claim, what would show it, what was found in the runs, and the verdict."""
    rows = []
    for claim in CLAIMS:
        pieces = claim.find(runs)
        lines = [(f"{piece.what}: {piece.numbers}", piece.verdict) for piece in pieces if piece.numbers]
        here = "<br>".join(f"({line})" if verdict == FOR_COMPARISON else line for line, verdict in lines)
        rows.append([claim.paper, claim.says, claim.shows, here, overall(pieces)])
    return ["paper", "claim", "what would show it", "here", "verdict"], rows
