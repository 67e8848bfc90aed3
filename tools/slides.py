"""Make a deck of slides from each notebook: one HTML file that needs nothing beside it.

    python tools/slides.py [--output build/slides]

A cell is on a slide if its metadata say so::

    "slideshow": {"slide_type": "slide", "words": ["Title\\nFirst line\\nSecond line"]}

Each entry of ``words`` is a slide: a title, then few lines, all quoted from the notebook's own text, so that slides
never say anything else. Without ``words`` the title is the heading above. Below the words stands what the cell shows:
its picture, its table, or what it printed; the code itself, if the cell shows nothing or has ``"code": true``. The text
of the notebook between two slides becomes the speaker's notes.

In a deck, arrow keys, Page Up and Down, Space, Home and End turn the slides, and ``s`` opens a window with the notes.
"""

from __future__ import annotations

import argparse
import html
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import nbformat
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pygments.formatters import HtmlFormatter

from tutorial_lib.project import ROOT

NOTEBOOKS = ROOT / "notebooks"
TEMPLATE = Path(__file__).with_name("slides.html")
# Pictures that lie elsewhere, such as the badge, and the links around them.
REMOTE_IMAGE = re.compile(r"\[?!\[[^\]]*\]\(https?:[^)]*\)(\]\([^)]*\))?")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
LOCAL_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")
HEADING = re.compile(r"(?:\A#|^#{2,3}) (.+)$", flags=re.MULTILINE)  # not a comment in code
# One or more sentences in italics that describe a figure, before or after it.
DESCRIPTION = re.compile(r"\A\*(?!\*)[^*\n]{15,}[.:!?]\*|(?<!\*)\*(?!\*)[^*\n]{15,}[.:!?]\*\Z")
TABLE = re.compile(r"(?:^\|.*\n?)+", flags=re.MULTILINE)
# What `ask` and `reconcile` print: a question with its unit or options, and the answer.
ASKED = re.compile(r"Predict: (.+?)(?: (\(.+\)))?")
MEASURED = re.compile(r"(.+)  guessed: .+, measured: (.+)")
# Printed lines that are no result: a progress bar, the profile, the data, how to answer a question.
NO_RESULT = re.compile(r".*\d%\|.*|(profile|data): .*|  commit in the form, .*|")


@dataclass
class Slide:
    """One slide.

    Attributes:
        section: the heading of the notebook above the slide's cell.
        title: HTML.
        lines: HTML of the few lines below the title.
        shown: HTML of the picture, table, code or printed text; empty if there is none.
        notes: HTML of the notebook's text that belongs to the slide.
    """

    section: str
    title: str
    lines: list[str]
    shown: str
    notes: list[str]


def markdown(source: str) -> str:
    """Return Markdown as HTML, without the marks that link to headings."""
    return markdown2html_mistune(source).replace("&#182;", "")


def plain(source: str) -> str:
    """Return Markdown without links, emphasis and line breaks."""
    return " ".join(LINK.sub(r"\1", REMOTE_IMAGE.sub("", source)).replace("*", "").split())


def description(cells: list[nbformat.NotebookNode], place: int) -> str:
    """Return the sentences in italics that describe the figure of a cell: those after it, or before it."""
    for near in (cells[place:], cells[:place][::-1]):
        text = next((cell.source for cell in near if cell.cell_type == "markdown"), "")
        if found := DESCRIPTION.search(text):
            return plain(found[0])
    return ""


def printed_line(line: str) -> str:
    """Return a line that a cell printed as HTML; questions and answers of predictions are large."""
    if asked := ASKED.fullmatch(line):
        return f'<p class="asked">{html.escape(asked[1])}&nbsp;<small>{html.escape(asked[2] or "")}</small></p>'
    if measured := MEASURED.fullmatch(line):
        return f'<p class="measured">{html.escape(measured[1])} <strong>{html.escape(measured[2])}</strong></p>'
    return f"<pre>{ansi2html(line)}</pre>"


def shown_by(cell: nbformat.NotebookNode, alt: str) -> str:
    """Return what a slide shows of a cell, as HTML: code if asked for, then a picture, a table, or printed text.

    The answers of predictions are always shown, in place of a table.
    """
    if cell.cell_type == "markdown":
        table = TABLE.search(cell.source)
        return markdown(LOCAL_LINK.sub(r"\1", table[0])) if table else ""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    lines = [line for line in printed.splitlines() if not NO_RESULT.fullmatch(line)]
    answers = [line for line in lines if MEASURED.fullmatch(line)]
    data = {kind: content for output in cell.outputs for kind, content in output.get("data", {}).items()}
    parts = []
    if cell.metadata.slideshow.get("code") or not cell.outputs:
        parts.append(Highlight2HTML(pygments_lexer="ipython3")(cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")))
    if "image/png" in data:
        parts += map(printed_line, answers)
        parts.append(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data["image/png"].strip()}">')
    elif "text/html" in data and not answers:
        parts.append(data["text/html"])
    elif lines:
        parts.append(f'<div class="printed">{"".join(map(printed_line, lines))}</div>')
    return "\n".join(parts)


def inline(words: str) -> str:
    """Return one line of Markdown as HTML without a paragraph around it; its first letter becomes a capital."""
    return markdown(words[:1].upper() + words[1:]).strip().removeprefix("<p>").removesuffix("</p>")


def parts_of(cell: nbformat.NotebookNode) -> list[str]:
    """Return the text of a Markdown cell, divided before each heading, without what lies outside the deck."""
    source = LOCAL_LINK.sub(r"\1", REMOTE_IMAGE.sub("", cell.source)) if cell.cell_type == "markdown" else ""
    return [part for part in re.split(r"^(?=#{2,3} )", source, flags=re.MULTILINE) if part.strip()]


def slides_of(notebook: nbformat.NotebookNode) -> list[Slide]:
    """Return the slides of a notebook.

    Raises:
        ValueError: words of a slide do not stand in the notebook's text.
    """
    text = plain("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"))
    slides: list[Slide] = []
    section = ""
    notes = ahead = list[str]()  # of the last slide, and of the next one: text from a heading on
    for place, cell in enumerate(notebook.cells):
        parts = parts_of(cell)
        section = plain((HEADING.findall("".join(parts)) or [section])[-1])
        on_slide = cell.metadata.get("slideshow", {}).get("slide_type") == "slide"
        if on_slide:
            notes, ahead = ahead, []
            shown = shown_by(cell, description(notebook.cells, place) or section)
            for words in cell.metadata.slideshow.get("words", [section]):
                if unsaid := [line for line in words.splitlines() if plain(line) not in text]:
                    raise ValueError(f"slide of cell {cell.id}: the notebook's text does not say {unsaid[0]!r}")
                title, *lines = map(inline, words.splitlines())
                slides.append(Slide(section, title.removesuffix("."), lines, shown, notes))
        for part in parts:
            notes = ahead if HEADING.match(part) and not on_slide else notes
            notes.append(markdown(part))
    return slides


def deck(notebook: nbformat.NotebookNode, name: str) -> str:
    """Return the page."""
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))
    style = HtmlFormatter().get_style_defs(".highlight")
    return template.render(name=name.replace("_", " "), pygments=style, slides=slides_of(notebook))


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
