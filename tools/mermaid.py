"""Draw flow charts in Mermaid's language as HTML, without a program of somebody else: rows of boxes in frames.

Rows wrap, so a diagram can be read at any width. Only what ``docs/architecture.md`` uses is understood: chains of
``a["name: text"] --> b``, and ``subgraph a["name"] … end``.
"""

from __future__ import annotations

import html
import re

NODE = re.compile(r'(\w+)\["([^"]*)"\]')
CHAIN = re.compile(r'\w+(\["[^"]*"\])?( --> \w+(\["[^"]*"\])?)*')


def boxes(line: str, labels: dict[str, str]) -> str:
    """Return a chain ``a["A: text"] --> b`` as HTML: one box per node, an arrow between two."""
    parts = []
    for node in line.split(" --> "):
        name, _, text = labels[node.split("[")[0]].partition(": ")
        defined = "[" in node
        parts.append(f'<span class="box"><b>{name}</b>{f"<br>{text}" if defined and text else ""}</span>')
    return f'<div class="chain">{"<span>→</span>".join(parts)}</div>'


def diagram(source: str) -> str:
    """Return a flow chart in Mermaid's language as HTML: a frame per subgraph, a row of boxes per chain.

    Raises:
        ValueError: a line that is neither the begin or end of a subgraph nor a chain of arrows.
    """
    labels = {name: html.escape(text).replace("&lt;br&gt;", "<br>") for name, text in NODE.findall(source)}
    rows = []
    for line in map(str.strip, source.strip().splitlines()[1:]):
        if line.startswith("subgraph "):
            rows.append(f'<div class="frame"><p>{labels[line.split()[1].split("[")[0]]}</p>')
        elif line == "end":
            rows.append("</div>")
        elif CHAIN.fullmatch(line):
            rows.append(boxes(line, labels))
        else:
            raise ValueError(f"the diagram's line {line!r} is not understood; use a --> b and subgraph a … end")
    return f'<div class="diagram">{"".join(rows)}</div>'
