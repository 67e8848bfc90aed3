"""A recorded run as a film of masks: one HTML page that needs nothing but a browser."""

from __future__ import annotations

import base64
import bisect
import html
import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from truly_sparse.errors import InvalidArgumentError

from .project import check_path
from .recorder import TopologyRecorder
from .viz import PALETTES

TEMPLATE = Path(__file__).with_name("player.html")
MAX_BYTES = 500_000
IFRAME_HEIGHT = 820  # CSS pixels


@dataclass(frozen=True)
class Player:
    """A page that plays a recorded run; a notebook shows it when it is the last value of a cell.

    Attributes:
        html: the whole page.
    """

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        # In a frame of its own, scripts run in JupyterLab and Colab alike, and neither side's styles reach the other.
        return (
            f'<iframe title="Topology player" sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            f'style="width: 100%; height: {IFRAME_HEIGHT}px; border: 0"></iframe>'
        )

    def save(self, path: str | Path) -> None:
        """Write the page to ``path``; whoever reads that file meanwhile sees the old one or the new one, whole.

        Raises:
            InvalidArgumentError: the folder does not exist, or nothing can be written there.
        """
        path = check_path("path", path)
        if not path.parent.is_dir():
            raise InvalidArgumentError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}; create it first")
        try:
            with tempfile.TemporaryDirectory(prefix=".player-", dir=path.parent) as temporary:
                written = Path(temporary) / "player.html"
                written.write_text(self.html, encoding="utf-8", errors="replace")
                os.replace(written, path)
        except OSError as error:
            raise InvalidArgumentError(f"path={str(path)!r} cannot be written ({error}); choose another") from error


def topology_player(
    recorder: TopologyRecorder, layers: Sequence[str] | None = None, title: str = "How the connections move"
) -> Player:
    """Return a page that plays the masks of a recorded run.

    It is kept below ``MAX_BYTES``, in a notebook too: where that takes it, moments are left out evenly, never the
    first or the last. Fewer layers leave room for more moments.

    Args:
        recorder: at least one recorded moment.
        layers: names of the layers to choose from; all recorded ones if None.
        title: heading.

    Raises:
        InvalidArgumentError: nothing recorded, no layers, an unknown one, or layers so large that not even the first
            and the last moment fit.
    """
    names = list(recorder.shapes if layers is None else layers)
    if not len(recorder) or not names:
        raise InvalidArgumentError(
            f"recorder={recorder!r} with layers={names}; give at least one moment and one layer to show"
        )
    for name in names:
        recorder.topologies(name)  # refuses an unknown one
    counts = range(min(2, len(recorder)), len(recorder) + 1)
    # The page grows with the number of moments, so the largest number that fits is found by halving.
    fitting = bisect.bisect_right(
        counts, MAX_BYTES, key=lambda count: len(_player(recorder, names, title, count)._repr_html_().encode())
    )
    if not fitting:
        raise InvalidArgumentError(
            f"layers={names}: {counts[0]} moments of them take more than {MAX_BYTES:,} bytes; pass fewer or smaller "
            "layers"
        )
    return _player(recorder, names, title, counts[fitting - 1])


def _player(recorder: TopologyRecorder, names: Sequence[str], title: str, count: int) -> Player:
    """Return the page with ``count`` of the recorded moments."""
    shown = _evenly(len(recorder), count)
    data = {
        "title": title,
        "recorded": len(recorder),
        "steps": [recorder.steps[moment] for moment in shown],
        "palettes": {"Published": PALETTES["published"], "Colour-blind safe": PALETTES["colorblind"]},
        "layers": [
            {
                "name": name,
                "shape": recorder.shapes[name],
                "frames": _pack_frames(c for moment, c in enumerate(recorder.topologies(name)) if moment in shown),
            }
            for name in dict.fromkeys(names)
        ],
    }
    # Without "<" nothing in the data can end the script element that holds it; JSON reads the escape as the same.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return Player(TEMPLATE.read_text(encoding="utf-8").replace("PLAYER_DATA", text))


def _evenly(moments: int, count: int) -> list[int]:
    """Return ``count`` distinct positions out of ``range(moments)``, the first and the last among them."""
    return np.linspace(0, moments - 1, count).round().astype(int).tolist()


def _pack_frames(topologies: Iterable[np.ndarray]) -> str:
    """Return topologies as base64 of deflated variable-length integers.

    A frame is the list of what was pruned, as positions among the connections before (smaller gaps than those of
    flat indices), then the list of what grew, as flat indices; each list is its length and its gaps. The first frame
    grows from nothing.
    """
    numbers: list[Any] = []
    for before, after in itertools.pairwise(itertools.chain([np.empty(0, dtype=np.int64)], topologies)):
        pruned = np.flatnonzero(~np.isin(before, after, assume_unique=True))
        grown = after[~np.isin(after, before, assume_unique=True)]
        for changed in (pruned, grown):
            numbers += [[len(changed)], np.diff(changed, prepend=0)]
    # Gaps hardly ever repeat in a row: looking for repetitions only gets in the way of Huffman's code.
    deflate = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    packed = deflate.compress(_to_varints(np.concatenate(numbers))) + deflate.flush()
    return base64.b64encode(packed).decode()


def _to_varints(numbers: np.ndarray) -> bytes:
    """Return non-negative integers as bytes of seven bits each, lowest first; all but a number's last have bit 7."""
    rest = np.asarray(numbers, dtype=np.int64)[:, None] >> np.arange(0, 64, 7)
    used = rest > 0
    used[:, 0] = True
    followed = np.roll(used, -1, axis=1)
    followed[:, -1] = False
    return (rest & 127 | followed.astype(np.int64) << 7).astype(np.uint8)[used].tobytes()
