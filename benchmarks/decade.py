"""The decade on equal terms: its methods for truly sparse layers at two sparsities, on all of MNIST.

python benchmarks/decade.py      # one thread per run; goes on where it was stopped

All have the same network, densities (ERK), first weights, optimizer, schedule and number of steps. How the topology
changes is all that differs. Interval and share of a rewiring are those of RigL where the method has such settings
("common"), and those that its class has by default ("own"). Writes ``figures/decade_runs.json`` after each seed.
"""

from __future__ import annotations

import argparse
import os

from truly_sparse import CHT, ITOP, MEST, SET, DeepRewiring, RigL, SRigL, Static
from tutorial_lib import load_data, save_result
from tutorial_lib.compare import Budget, compare
from tutorial_lib.contenders import Contender, Sparse
from tutorial_lib.project import ROOT

SPARSITIES = (0.95, 0.99)
SEEDS = (0, 1, 2)
BUDGET = Budget(epochs=10, batch_size=64)
COMMAND = "python benchmarks/decade.py"
FOLDER = ROOT / "build" / "decade"
COMMON = {"prune_fraction": 0.3, "every": 100, "until": 0.75, "decay": "cosine"}
METHODS: dict[str, Contender] = {
    "static": Sparse(how=Static()),
    "Deep Rewiring, own": Sparse(how=DeepRewiring()),
    "SET, common": Sparse(how=SET(**COMMON)),
    "SET, own": Sparse(how=SET()),
    "RigL, common and own": Sparse(how=RigL()),
    "ITOP, own": Sparse(how=ITOP()),
    "MEST, common": Sparse(how=MEST(**COMMON)),
    "MEST, own": Sparse(how=MEST()),
    "CHT, common": Sparse(how=CHT(**COMMON)),
    "CHT, own": Sparse(how=CHT()),
    "SRigL, common": Sparse(how=SRigL(**COMMON)),
    "SRigL, own": Sparse(how=SRigL()),
}


def main() -> None:
    """Run what is missing and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    arguments = parser.parse_args()
    data = load_data("mnist")
    for seeds in range(1, len(SEEDS) + 1):
        found = compare(METHODS, data, SPARSITIES, SEEDS[:seeds], BUDGET, folder=FOLDER, workers=arguments.workers)
        values = {
            "epochs": BUDGET.epochs,
            "batch_size": BUDGET.batch_size,
            "seeds": list(SEEDS[:seeds]),
            "threads_per_run": 1,
            "runs_side_by_side": arguments.workers,
            "runs": found.runs.to_dict(orient="list"),
        }
        path = save_result("decade_runs", values, command=COMMAND, data=data)
        print(f"wrote {path.relative_to(ROOT)}, {seeds} of {len(SEEDS)} seeds")


if __name__ == "__main__":
    main()
