"""Slides say little, and only what the notebook says; each fits its screen, is legible, and needs no network."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import slides

NOTEBOOKS = sorted(slides.NOTEBOOKS.glob("*.ipynb"))
per_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SMALLEST_TEXT = 18  # pixels of 720


def read(path):
    return nbformat.read(path, as_version=4)


def deck_of(path):
    return slides.deck(read(path), path.stem)


def text_of(html):
    return re.sub(r"<[^>]+>", "", html)


def slide(*words, **more):
    return {"slideshow": {"slide_type": "slide", "words": list(words), **more}}


def printed(text):
    return [new_output("stream", text=text)]


# ------------------------------------------------------------------------------------------ the decks


@per_notebook
def test_a_deck_is_short_and_its_slides_say_one_thing_in_few_words(path):
    deck = slides.slides_of(read(path))
    assert 12 <= len(deck) <= 25
    for one in deck:
        words = " ".join(map(text_of, [one.title, *one.lines])).split()
        assert len(words) <= 40 and len(one.lines) <= 4, one.title
        shown = [len(re.findall(tag, one.shown)) for tag in ("<(?:img|iframe) ", "<table", '<div class="highlight')]
        assert max(shown) <= 1 and sum(shown) <= 1, one.title


@per_notebook
def test_a_deck_has_the_question_the_predictions_the_exercises_and_the_summary(path):
    notebook = read(path)
    deck = slides.slides_of(notebook)
    assert deck[0].lines[-1].endswith("?")
    shown = "\n".join(one.shown for one in deck)
    outputs = [
        line for cell in notebook.cells for o in cell.get("outputs", []) for line in o.get("text", "").split("\n")
    ]
    asked = [slides.ASKED.fullmatch(line)[1] for line in outputs if slides.ASKED.fullmatch(line)]
    places = {kind: re.findall(rf'<p class="{kind}">(.*?)(?:&nbsp;| )<', shown) for kind in ("asked", "measured")}
    assert asked and [slides.html.escape(question) for question in asked] == places["asked"] == places["measured"]
    titles = [text_of(one.title) for one in deck]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert [t for t in titles if t.startswith("Exercise ")] == re.findall(
        r"^### (Exercise \d+: .+)$", text, re.MULTILINE
    )
    assert "What we saw" in titles or "Takeaways" in titles
    assert ("Next question" in titles) == ("**Next question.**" in text)


@per_notebook
def test_a_question_comes_before_its_answer_is_seen(path):
    kinds = re.findall(r'<p class="(asked|measured)">|<img ', "".join(s.shown for s in slides.slides_of(read(path))))
    open_questions = 0
    for kind in kinds:
        open_questions += {"asked": 1, "measured": -1}.get(kind, 0)
        assert open_questions >= 0


@per_notebook
def test_the_notes_hold_the_whole_text(path):
    notebook = read(path)
    notes = {id(one.notes): one.notes for one in slides.slides_of(notebook)}.values()
    said = [part for parts in notes for part in parts]
    parts = [slides.markdown(part) for cell in notebook.cells for part in slides.parts_of(cell)]
    assert sorted(said) == sorted(parts)


@per_notebook
def test_nothing_lies_elsewhere(path):
    page = deck_of(path)
    assert "default-src 'none'" in page
    assert not re.search(r'<(script|img|iframe|link)[^>]*\b(src|href)="(?!data:)', page)
    assert 'href="../' not in page


# ------------------------------------------------------------------------------------------ cells become slides


def test_a_title_lines_and_a_picture_with_its_description():
    figure = new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"})
    cells = [
        new_markdown_cell(
            "# T\n\n[![b](https://x/y.svg)](https://x)\n\nAll weights of a [mask](../docs/glossary.md) move."
        ),
        new_code_cell("draw()", outputs=[figure], metadata=slide("weights of a mask\n*move*.")),
        new_markdown_cell("*White where a connection is.* More.\n\n## 1. Next\n\nText"),
        new_code_cell("untagged()", outputs=printed("unseen")),
        new_markdown_cell("# End", metadata={"slideshow": {"slide_type": "slide"}}),
    ]
    first, end = slides.slides_of(new_notebook(cells=cells))
    assert first.title == "Weights of a mask" and first.lines == ["<em>move</em>."] and first.section == "T"
    assert 'alt="White where a connection is."' in first.shown and "draw" not in first.shown
    assert text_of("".join(first.notes)).split()[-1] == "More." and "move" in first.notes[0]
    assert end.title == "End" and [text_of(part).split()[0] for part in end.notes] == ["1.", "End"]
    assert "glossary" not in "".join(first.notes) and "y.svg" not in "".join(first.notes)


def test_a_slide_says_nothing_that_the_notebook_does_not_say():
    cells = [new_markdown_cell("# T\n\nAbout 97%."), new_code_cell("1", metadata=slide("About 98%"))]
    with pytest.raises(ValueError, match="'About 98%'"):
        slides.slides_of(new_notebook(cells=cells))


def test_a_cell_shows_what_it_prints_or_its_code_or_both():
    def shown(**settings):
        return lambda source, text="": (
            slides.slides_of(
                new_notebook(
                    cells=[
                        new_markdown_cell("# T"),
                        new_code_cell(source, outputs=printed(text) if text else [], metadata=slide("T", **settings)),
                    ]
                )
            )[0].shown
        )

    assert "a &lt; b" in shown()("f()", "profile: full\n100%|██| 9/9\na < b\n") and "profile" not in shown()(
        "f()", "profile: full\n"
    )
    assert "highlight" in shown()("f()") and "highlight" not in shown()("f()", "1")
    both = text_of(shown(code=True)("# NBVAL_CHECK_OUTPUT\nf()", "1"))
    assert "f()" in both and "1" in both and "NBVAL" not in both


def test_the_answer_of_a_prediction_stands_in_place_of_a_table():
    table = new_output("execute_result", {"text/html": "<table>5</table>", "text/plain": "5"}, execution_count=1)
    answer = printed("How much?  guessed: no guess, measured: 97.5%\n")
    question = printed("Predict: How much? (%)\n  commit in the form, or write guess=... into this cell\n")
    cells = [
        new_code_cell("", outputs=outputs, metadata=slide("T")) for outputs in (question, [*answer, table], [table])
    ]
    asked, answered, plain = slides.slides_of(new_notebook(cells=[new_markdown_cell("T"), *cells]))
    assert text_of(asked.shown).strip() == "How much?&nbsp;(%)"
    assert "<strong>97.5%</strong>" in answered.shown and "table" not in answered.shown and "table" in plain.shown


# ------------------------------------------------------------------------------------------ in a browser


@pytest.fixture
def screen(chromium):
    """A page as large as a slide, and what it said and asked for."""
    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    assert heard == [] and [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
    page.close()


@pytest.mark.browser
@per_notebook
def test_every_slide_fits_and_can_be_read_from_afar(screen, tmp_path, path):
    (tmp_path / "deck.html").write_text(deck_of(path), encoding="utf-8")
    screen.goto((tmp_path / "deck.html").as_uri())
    found = screen.evaluate(
        """() => slides.map(slide => {
            const boxes = [slide, ...slide.querySelectorAll('.shown, pre, p')];
            const texts = [...slide.querySelectorAll('*')].filter(e => [...e.childNodes].some(
                node => node.nodeType === Node.TEXT_NODE && node.data.trim()) && !e.matches('style, iframe'));
            return {title: slide.querySelector('h1').textContent,
                over: boxes.some(b => b.scrollHeight > b.clientHeight + 1 || b.scrollWidth > b.clientWidth + 1),
                size: Math.min(...texts.map(e => parseFloat(getComputedStyle(e).fontSize)))};
        })"""
    )
    assert len(found) == len(slides.slides_of(read(path)))
    assert [one["title"] for one in found if one["over"]] == []
    assert [one for one in found if one["size"] < SMALLEST_TEXT] == []
    seen = (
        "() => [...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt.length > 10 && i.height > 100)"
    )
    assert screen.evaluate(seen)


@pytest.mark.browser
def test_a_deck_prints_one_slide_on_each_page(screen, tmp_path):
    (tmp_path / "deck.html").write_text(deck_of(NOTEBOOKS[0]), encoding="utf-8")
    screen.goto((tmp_path / "deck.html").as_uri())
    pages = re.findall(rb"/Type /Page\b", screen.pdf(prefer_css_page_size=True))
    assert len(pages) == len(slides.slides_of(read(NOTEBOOKS[0])))


@pytest.mark.browser
def test_keys_turn_the_slides_and_open_the_speaker_s_notes(screen, tmp_path):
    (tmp_path / "deck.html").write_text(deck_of(NOTEBOOKS[0]), encoding="utf-8")
    screen.goto((tmp_path / "deck.html").as_uri() + "#3")
    count = screen.locator("section").count()
    number = screen.locator("section.now footer span").last
    assert number.inner_text() == f"3 / {count}" and screen.locator("section:visible").count() == 1
    for key, place in (("PageDown", 4), ("ArrowLeft", 3), (" ", 4), ("End", count), ("ArrowRight", count), ("Home", 1)):
        screen.keyboard.press(key)
        assert number.inner_text() == f"{place} / {count}" and screen.url.endswith(f"#{place}")
    with screen.expect_popup() as opened:
        screen.keyboard.press("s")
    notes = opened.value
    assert "You will learn" in notes.inner_text("body") and "The task: ten digits" in notes.inner_text("body")
    notes.keyboard.press("PageDown")
    assert number.inner_text() == f"2 / {count}" and "You will learn" not in notes.inner_text("body")
    notes.close()
    screen.keyboard.press("ArrowRight")
    assert number.inner_text() == f"3 / {count}"


@pytest.mark.browser
def test_the_film_plays_on_its_slide(screen, tmp_path):
    path = next(path for path in NOTEBOOKS if path.stem.startswith("04"))
    place = next(i for i, one in enumerate(slides.slides_of(read(path)), start=1) if "<iframe" in one.shown)
    (tmp_path / "deck.html").write_text(deck_of(path), encoding="utf-8")
    screen.goto((tmp_path / "deck.html").as_uri() + f"#{place}")
    film = screen.frame_locator("section.now iframe")
    film.get_by_role("slider", name="Step").fill("2")
    film.locator("canvas").first.wait_for()
    screen.locator("section.now h1").click()
    screen.keyboard.press("PageDown")
    assert screen.locator("section.now footer span").last.inner_text().startswith(f"{place + 1} /")
