"""Animation of the masks of a recorded run, as one self-contained HTML page."""

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

import numpy as np

from truly_sparse.arguments import require, shown
from truly_sparse.errors import InvalidArgumentError

from .recorder import TopologyRecorder
from .viz import PALETTES

TEMPLATE = Path(__file__).with_name("player.html")
MAX_BYTES = 500_000
IFRAME_HEIGHT = 820  # CSS pixels


@dataclass(frozen=True)
class Player:
    """A page that plays a recorded run. A notebook displays it if it is the last value of a cell.

    Attributes:
        html: the page.
    """

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        # In an iframe, scripts run in both JupyterLab and Colab, and the styles of page and notebook stay separate.
        return (
            f'<iframe title="Topology player" sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            f'style="width: 100%; height: {IFRAME_HEIGHT}px; border: 0"></iframe>'
        )

    def save(self, path: str | Path) -> None:
        """Write the page to ``path``. The file is replaced in one step: readers see the old page or the new one.

        Raises:
            OSError: the folder does not exist, or the file cannot be written.
        """
        path = Path(path)
        with tempfile.TemporaryDirectory(prefix=".player-", dir=path.parent) as temporary:
            written = Path(temporary) / "player.html"
            written.write_text(self.html, encoding="utf-8", errors="replace")
            os.replace(written, path)


def topology_player(
    recorder: TopologyRecorder, layers: Sequence[str] | None = None, title: str = "How the connections move"
) -> Player:
    """Return a page that plays the masks of a recorded run.

    The page, including its frame in a notebook, is at most ``MAX_BYTES`` large. If necessary, moments are left out at
    even intervals, but never the first or the last. With fewer layers, more moments fit.

    Args:
        recorder: at least one recorded moment.
        layers: names of the layers that the page offers; all recorded layers if None.
        title: title of the page.

    Raises:
        InvalidArgumentError: nothing was recorded, no or unknown layers, or layers so large that the first and the
            last moment do not fit.
    """
    require(len(recorder) > 0, "recorder", recorder, "give a recorder with at least one moment")
    listed = not isinstance(layers, str) and (layers is None or len(layers) > 0)
    require(listed, "layers", layers, "give a list of at least one recorded layer, or None for all")
    names = list(recorder.shapes if layers is None else layers)
    for name in names:
        recorder.topologies(name)  # raises for an unknown name
    counts = range(min(2, len(recorder)), len(recorder) + 1)
    # The page grows with the number of moments, so bisection finds the largest number that fits.
    fitting = bisect.bisect_right(
        counts, MAX_BYTES, key=lambda count: len(_player(recorder, names, title, count)._repr_html_().encode())
    )
    if not fitting:
        raise InvalidArgumentError(
            f"layers={shown(names)}: {counts[0]} moments of them take more than {MAX_BYTES:,} bytes; pass fewer or "
            "smaller layers"
        )
    return _player(recorder, names, title, counts[fitting - 1])


def _player(recorder: TopologyRecorder, names: Sequence[str], title: str, count: int) -> Player:
    """Return the page with ``count`` of the recorded moments."""
    moments = _evenly(len(recorder), count)
    data = {
        "title": title,
        "recorded": len(recorder),
        "steps": [recorder.steps[moment] for moment in moments],
        "palettes": {"Published": PALETTES["published"], "Colour-blind safe": PALETTES["colorblind"]},
        "layers": [
            {
                "name": name,
                "shape": recorder.shapes[name],
                "frames": _pack_frames(c for moment, c in enumerate(recorder.topologies(name)) if moment in moments),
            }
            for name in dict.fromkeys(names)
        ],
    }
    # A name may contain "</script>": escaped in JSON, its "<" cannot end the script element that holds the data.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return Player(TEMPLATE.read_text(encoding="utf-8").replace("PLAYER_DATA", text))


def _evenly(moments: int, count: int) -> list[int]:
    """Return ``count`` distinct positions out of ``range(moments)``, the first and the last among them."""
    return np.linspace(0, moments - 1, count).round().astype(int).tolist()


def _pack_frames(topologies: Iterable[np.ndarray]) -> str:
    """Return topologies as variable-length integers, compressed by DEFLATE, in base64.

    A frame consists of two lists: the pruned connections, as positions in the previous topology (their gaps are
    smaller than those of flat indices), and the grown connections, as flat indices. A list is its length followed by
    its gaps. In the first frame all connections are grown.
    """
    numbers: list[np.ndarray] = []
    for before, after in itertools.pairwise(itertools.chain([np.empty(0, dtype=np.int64)], topologies)):
        pruned = np.flatnonzero(~np.isin(before, after, assume_unique=True))
        grown = after[~np.isin(after, before, assume_unique=True)]
        for changed in (pruned, grown):
            numbers += [np.array([len(changed)]), np.diff(changed, prepend=0)]
    # Sequences of gaps hardly ever repeat: without search for repetitions the Huffman code is shorter.
    deflate = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    packed = deflate.compress(_to_varints(np.concatenate(numbers))) + deflate.flush()
    return base64.b64encode(packed).decode()


def _to_varints(numbers: np.ndarray) -> bytes:
    """Encode non-negative integers in 7-bit groups, lowest first; bit 7 is set in all but a number's last byte."""
    rest = np.asarray(numbers, dtype=np.int64)[:, None] >> np.arange(0, 64, 7)
    used = rest > 0
    used[:, 0] = True
    followed = np.roll(used, -1, axis=1)
    followed[:, -1] = False
    return (rest & 127 | followed.astype(np.int64) << 7).astype(np.uint8)[used].tobytes()
