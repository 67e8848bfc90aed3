"""Coverage-guided fuzzing of what reads untrusted bytes: ``python tests/atheris_fuzz.py RUNS [SEED]``.

The first byte of an input chooses who reads the rest. It is refused by an exception of the project or read rightly;
anything else ends the program with a traceback and leaves the input in a file that libFuzzer names. The number of
executions is printed at the end.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[f"tutorial_lib.{name}" for name in ("checkpoint", "data", "recorder", "kernels.index")]
):
    import torch

    from truly_sparse import InvalidArgumentError, SparseLinear
    from truly_sparse.cpu.index import ConvIndex, LinearIndex
    from tutorial_lib import TopologyRecorder, data, load_checkpoint, save_checkpoint
    from tutorial_lib.checkpoint import DIGEST, NAME, VERSION, CheckpointError
    from tutorial_lib.data import DataError

FOLDER = Path(tempfile.mkdtemp(prefix="atheris-"))
HEADER = len(NAME + VERSION) + DIGEST().digest_size


def layer() -> SparseLinear:
    torch.manual_seed(0)
    return SparseLinear(3, 2, connections=torch.tensor([0, 2, 5]))


# ------------------------------------------------------------------------------------------ what is tried


def checkpoint(content: bytes) -> None:
    """A file of these bytes, and one in which they stand behind a checksum that was made for them."""
    path, model = FOLDER / "checkpoint", layer()
    for file in (content, NAME + VERSION + DIGEST(content[HEADER:]).digest() + content[HEADER:]):
        path.write_bytes(file)
        try:
            load_checkpoint(path, model=model)
        except CheckpointError as error:
            assert str(path) in str(error)
        assert model(torch.ones(1, 3)).shape == (1, 2) and len(model.active()) == len(model.values) == 3


def labels(content: bytes) -> None:
    """A data file of these bytes, zipped or not: MNIST's own, or refused."""
    for ending in ("", ".gz"):
        path = FOLDER / f"t10k-labels-idx1-ubyte{ending}"
        path.write_bytes(content)
        try:
            data._read_verified(FOLDER, "t10k-labels-idx1-ubyte")
        except DataError as error:
            assert str(path) in str(error)
        else:
            raise AssertionError("bytes with another checksum were trusted")
        path.unlink()


def recorder(content: bytes) -> None:
    """The packed moments of a recorded run."""
    given, made = atheris.FuzzedDataProvider(content), TopologyRecorder()
    shape = [given.ConsumeIntInRange(-1, 5) for _ in range(given.ConsumeIntInRange(0, 4))]
    lengths = [given.ConsumeIntInRange(-1, 40) for _ in range(given.ConsumeIntInRange(0, 3))]
    packed = torch.frombuffer(bytearray(given.ConsumeBytes(120) or b"\0"), dtype=torch.uint8)
    state = {
        "steps": [*range(len(lengths))],
        "shapes": {"a": shape},
        "lengths": {"a": lengths},
        "packed": {"a": packed},
    }
    try:
        made.load_state_dict(state)
    except InvalidArgumentError:
        assert len(made) == 0 and not made.shapes
    else:
        for moment in range(len(made)):
            assert made.mask("a", moment).sum() == len(made.connections("a", moment))


def topology(content: bytes) -> None:
    """Positions of weights, in any order and range."""
    given = atheris.FuzzedDataProvider(content)
    shape = tuple(given.ConsumeIntInRange(-1, 6) for _ in range(4))
    width = given.PickValueInList([3, 40, 2**33])
    flat = torch.tensor(
        [given.ConsumeIntInRange(-1, width) for _ in range(given.ConsumeIntInRange(0, 8))], dtype=torch.int64
    )
    for kind, size in ((LinearIndex, shape[:2]), (ConvIndex, shape)):
        try:
            assert torch.equal(kind.build(flat, size).flat(), flat)
        except InvalidArgumentError:
            pass


READERS = (checkpoint, labels, recorder, topology)


def beginnings() -> list[bytes]:
    """Return what each reader takes: where the search starts."""
    save_checkpoint(FOLDER / "saved", model=layer())
    recorded = TopologyRecorder()
    recorded.record({"a": layer()}, 0)
    packed = recorded.state_dict()["packed"]["a"].numpy().tobytes()
    whole = (FOLDER / "saved").read_bytes(), struct.pack(">2i", 2049, 3) + b"\1\2\3", packed, bytes(range(40))
    return [bytes([number]) + content for number, content in enumerate(whole)]


def main(runs: str, seed: str = "0") -> None:
    """Read that many inputs; libFuzzer ends the process."""
    corpus, executed = FOLDER / "corpus", 0
    corpus.mkdir()
    for number, content in enumerate(beginnings()):
        (corpus / str(number)).write_bytes(content)

    def read(content: bytes) -> None:
        nonlocal executed
        READERS[content[0] % len(READERS) if content else 0](content[1:])
        executed += 1
        if executed == int(runs):
            print(f"{executed} executions", flush=True)

    atheris.Setup(["fuzz", f"-runs={runs}", f"-seed={seed}", "-max_len=8192", "-verbosity=0", str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
