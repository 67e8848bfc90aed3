"""The decks hold the notebooks' own cells, ask for nothing, and nothing in them runs over its slide."""

import re

import nbformat
import pytest

from tools import slides

NOTEBOOKS = sorted(slides.NOTEBOOKS.glob("*.ipynb"))


def deck_of(path):
    return slides.deck(nbformat.read(path, as_version=4), path.stem)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_lies_elsewhere(path):
    page = deck_of(path)
    assert "default-src 'none'" in page
    assert not re.search(r'<(script|img|iframe|link)[^>]*\b(src|href)="(?!data:)', page)


def test_cells_become_blocks_and_set_up_and_imports_do_not():
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# T\n\n[![b](https://x/y.svg)](https://x)\n\ntext\n\n- a\n- b"),
            nbformat.v4.new_code_cell("setup()"),
            nbformat.v4.new_code_cell("import this"),
            nbformat.v4.new_code_cell(
                "# NBVAL_CHECK_OUTPUT\nprint(1)", outputs=[nbformat.v4.new_output("stream", text="1 < 2")]
            ),
            nbformat.v4.new_markdown_cell("<details><summary>Hint</summary>\n\ninside\n\n</details>"),
        ]
    )
    heading, text, items, code, output, folded = slides.blocks(notebook)
    assert "<h1" in heading and "text" in text and items.count("<li>") == 2
    assert "print" in code and "NBVAL" not in code and "1 &lt; 2" in output
    assert folded.count("details>") == 2 and "inside" in folded


def test_a_description_stays_with_its_figure_and_a_prediction_form_is_left_out():
    figure = nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"})
    form = nbformat.v4.new_output("stream", text="Predict: how much? (%)\n")
    cells = [nbformat.v4.new_code_cell(), nbformat.v4.new_code_cell()]
    cells += [
        nbformat.v4.new_code_cell("draw()", outputs=[figure]),
        nbformat.v4.new_markdown_cell("*What is seen.*\n\nx"),
    ]
    cells += [nbformat.v4.new_code_cell("ask()", outputs=[form]), nbformat.v4.new_markdown_cell("*No figure.*")]
    _, described, more, ask, last = slides.blocks(nbformat.v4.new_notebook(cells=cells))
    assert "<img" in described and "What is seen." in described
    assert "x" in more and "ask" in ask and "No figure." in last and "<img" not in last


@pytest.mark.browser
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_slide_fits_and_nothing_is_missing(chromium, tmp_path, path):
    (tmp_path / "deck.html").write_text(deck_of(path), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "deck.html").as_uri())
    page.locator(".slide.shown").wait_for()
    found = page.evaluate(
        """() => [...document.querySelectorAll('.slide')].map(slide => ({
            over: slide.scrollHeight > slide.clientHeight || slide.scrollWidth > slide.clientWidth
                || [...slide.children].some(
                    b => b.scrollWidth > b.clientWidth + 1 || b.scrollHeight > b.clientHeight + 1),
            zoom: Math.min(...[...slide.children].map(b => Number(b.style.zoom || 1))),
            text: slide.innerText.slice(0, 60)}))"""
    )
    assert len(found) >= 10 and [slide for slide in found if slide["over"]] == []
    assert [slide for slide in found if slide["zoom"] < 0.5] == [], "too small to read"
    loaded = "() => [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert page.evaluate(loaded) and page.evaluate("() => document.querySelectorAll('main > .block').length") == 0
    page.keyboard.press("ArrowRight")
    assert page.locator("#number").inner_text() == f"2 / {len(found)}"
    assert heard == [] and [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()
