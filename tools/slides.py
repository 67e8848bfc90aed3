"""Make a deck of slides from each notebook's own cells, one HTML file that needs nothing beside it.

    python tools/slides.py [--output build/slides]

Arrow keys, Space, Home and End turn the slides; ``#7`` at the end of the address opens the seventh.
"""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path

import nbformat
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pygments.formatters import HtmlFormatter

from tutorial_lib.project import ROOT

NOTEBOOKS = ROOT / "notebooks"
TEMPLATE = Path(__file__).with_name("slides.html")
PLAYER = "<p><em>A film of this run: see the notebook.</em></p>"
# Pictures that lie elsewhere, such as the badge, and the links around them.
REMOTE_IMAGE = re.compile(r"\[?!\[[^\]]*\]\(https?:[^)]*\)(\]\([^)]*\))?")


def markdown_blocks(source: str) -> list[str]:
    """Return a Markdown cell as one piece of HTML per paragraph, list, table or heading."""
    paragraphs = re.split(r"\n\s*\n", REMOTE_IMAGE.sub("", source).strip())
    whole: list[str] = []
    for paragraph in paragraphs:
        opened = bool(whole) and any(whole[-1].count(a) > whole[-1].count(b) for a, b in (("<details", "</details"),))
        fenced = bool(whole) and whole[-1].count("```") % 2 == 1
        if opened or fenced:
            whole[-1] += f"\n\n{paragraph}"
        elif paragraph:
            whole.append(paragraph)
    return [markdown2html_mistune(text).replace("&#182;", "") for text in whole]


def output_block(output: nbformat.NotebookNode) -> str | None:
    """Return an output as HTML, or None for one that slides cannot show or, as the form of a prediction, use."""
    if output.output_type == "stream":
        return None if output.text.startswith("Predict: ") else f"<pre>{ansi2html(output.text)}</pre>"
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/html" in data:
        return PLAYER if "<iframe" in data["text/html"] else data["text/html"]
    return f"<pre>{html.escape(data['text/plain'])}</pre>" if "text/plain" in data else None


def blocks(notebook: nbformat.NotebookNode) -> list[str]:
    """Return a notebook's cells as pieces of HTML, in order; a description in italics stays with its figure or table.

    The first two cells that hold code, set-up and imports, are left out.
    """
    highlight = Highlight2HTML(pygments_lexer="ipython3")
    setup = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    pieces: list[str] = []
    shown = False  # the last piece is an output
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            first, *rest = markdown_blocks(cell.source)
            if shown and first.startswith("<p><em>"):
                pieces[-1] += first
            else:
                pieces.append(first)
            pieces += rest
            shown = False
        elif cell.cell_type == "code" and cell not in setup:
            source = cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")
            outputs = [block for output in cell.outputs if (block := output_block(output))]
            pieces += [f'<div class="code">{highlight(source)}</div>', *outputs]
            shown = bool(outputs)
    return pieces


def deck(notebook: nbformat.NotebookNode, title: str) -> str:
    """Return the page."""
    parts = {
        "{title}": html.escape(title),
        "{pygments}": HtmlFormatter().get_style_defs(".highlight"),
        "{blocks}": "\n".join(f'<div class="block">{piece}</div>' for piece in blocks(notebook)),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], template)


def main() -> None:
    """Write all decks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "slides")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page = deck(nbformat.read(path, as_version=4), path.stem)
        (output / f"{path.stem}.html").write_text(page, encoding="utf-8")
    print(f"{len(list(output.glob('*.html')))} decks in {output}/")


if __name__ == "__main__":
    main()
