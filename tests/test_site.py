"""The site holds every page, its links lead somewhere, and it can be read: offline, in the dark, on a phone."""

import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest

from tools import site
from tools.mermaid import diagram
from tutorial_lib.project import ROOT

PHONE = {"width": 390, "height": 844}
# One page of each kind, and what of it is checked for contrast: the whole takes seconds per page.
KINDS = {
    "index": "body",
    "docs/architecture": "article",
    "notebooks/06_barriers": "article",
    "api/truly_sparse": "#truly-sparse-convert",
}
# Sphinx's headings of the navigation have no level; newer browsers reach code that scrolls by the keyboard.
KNOWN = {rule: {"enabled": False} for rule in ("aria-required-attr", "scrollable-region-focusable")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "source"
    site.collect(folder)
    return folder


# ------------------------------------------------------------------------------------------ what Sphinx reads


def test_every_page_is_in_the_contents(source):
    entries = (source / "index.md").read_text(encoding="utf-8").split("```{toctree}", maxsplit=1)[1].splitlines()
    pages = {str(path.relative_to(source).with_suffix("")) for path in source.rglob("*") if path.suffix != ".png"}
    pages -= {"index", "api", "docs", "notebooks", "figures"}
    expected = [*(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    assert pages >= {str(path.relative_to(ROOT).with_suffix("")) for path in expected}
    assert [page for page in pages if not any(fnmatch.fnmatch(page, entry) for entry in entries)] == []


@pytest.mark.parametrize(
    "link, folder, seen",
    [
        ("help.md", "docs", "help.md"),
        ("../README.md#what-it-costs", "docs", "../index.md#what-it-costs"),
        ("README.md", "", "index.md"),
        ("../notebooks/01_paradox.ipynb", "docs", "../notebooks/01_paradox.ipynb"),
        ("../truly_sparse/rules.py", "docs", "{}/blob/main/truly_sparse/rules.py"),
        ("tutorial_lib/exercises/", "", "{}/tree/main/tutorial_lib/exercises"),
        ("https://arxiv.org/abs/1911.11134", "", "https://arxiv.org/abs/1911.11134"),
        ("#sources", "docs", "#sources"),
        ("missing.md", "docs", "missing.md"),
    ],
)
def test_a_link_to_what_is_no_page_goes_to_the_repository(link, folder, seen):
    collected = {"docs/help.md", "notebooks/01_paradox.ipynb"}
    assert site.relinked(f"a [b]({link}) c", folder, collected) == f"a [b]({seen.format(site.repository())}) c"


@pytest.mark.parametrize("package", site.PACKAGES, ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name_and_every_module_that_the_notebooks_import(package):
    page, name = site.api_page(package), package.__name__
    modules = re.findall(r"^\.\. automodule:: (\S+)\n   :members:", page, flags=re.MULTILINE)
    named = {word for line in re.findall(rf"from {name} import (.*)", page) for word in line.split(", ")}
    named |= {module.removeprefix(f"{name}.") for module in modules}
    assert named >= set(package.__all__)
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert set(modules) >= set(re.findall(rf"from ({name}\.\w+) import", text))


def test_a_diagram_becomes_frames_and_rows():
    drawn = diagram('flowchart TD\n  a["A: first & last"] --> b\n  subgraph b["B"]\n    c["C"] --> a\n  end')
    first, second = '<span class="box"><b>A</b><br>first &amp; last</span>', '<span class="box"><b>B</b></span>'
    assert f'<div class="chain">{first}<span>→</span>{second}</div><div class="frame"><p>B</p>' in drawn
    assert drawn.count("<div") == drawn.count("</div>")


def test_a_line_that_the_diagram_cannot_draw_is_named():
    with pytest.raises(ValueError, match=r"'a -\.-> b' is not understood"):
        diagram("flowchart TD\n  a -.-> b")


def test_the_diagram_of_the_architecture_can_be_drawn():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (chart,) = re.findall(r"```mermaid\n(.*?)```", text, flags=re.DOTALL)
    assert diagram(chart).count('class="frame"') == chart.count("subgraph ")


# ------------------------------------------------------------------------------------------ what a browser shows


@dataclass
class Visited:
    """A page as the browser shows it from a file."""

    ids: set[str]
    links: list[str]
    images: list[dict]
    wrong: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "site"
    site.build(folder)
    return folder


FACTS = """() => ({
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.querySelectorAll('a[href]')].map(e => e.href),
    images: [...document.images].map(i => ({src: i.src, alt: i.alt, shown: i.complete && i.naturalWidth > 0,
        figure: i.closest('article') !== null})),
})"""


def visit(page, path):
    """Open a page; what its console says, and what it asks for beside files, is wrong."""
    wrong = []
    listeners = {
        "console": lambda message: wrong.append(message.text),
        "pageerror": lambda error: wrong.append(str(error)),
        "requestfailed": lambda request: wrong.append(request.url),
        "request": lambda r: None if r.url.startswith(("file:", "data:", "blob:", "about:")) else wrong.append(r.url),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    page.goto(path.as_uri())
    facts = page.evaluate(FACTS)
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    return Visited(set(facts["ids"]), facts["links"], facts["images"], wrong)


@pytest.fixture(scope="module")
def visited(chromium, built):
    """Every page that links reach from the index or the search on, by its path."""
    page = chromium.new_page()
    found, waiting = {}, [built / "index.html", built / "search.html"]  # a form leads to the search
    while waiting:
        path = waiting.pop()
        if path not in found and path.suffix == ".html" and path.exists():
            found[path] = visit(page, path)
            waiting += [target(link) for link in found[path].links if link.startswith("file:")]
    page.close()
    return found


def target(link):
    return Path(link.removeprefix("file://").split("#")[0].split("?")[0])


@pytest.mark.browser
def test_every_page_is_reached_and_every_link_leads_somewhere(built, visited):
    assert set(visited) == set(built.rglob("*.html"))
    broken = []
    for path, page in visited.items():
        for link in filter(lambda link: link.startswith("file:"), page.links):
            fragment = link.partition("#")[2]
            there = target(link) in visited and (not fragment or fragment in visited[target(link)].ids)
            if not there and not (target(link).is_file() and target(link).suffix != ".html"):
                broken.append((path.name, link))
    assert broken == []


@pytest.mark.browser
def test_no_page_complains_or_asks_the_network(visited):
    assert {path.name: page.wrong for path, page in visited.items() if page.wrong} == {}


@pytest.mark.browser
def test_every_figure_is_shown_and_described_in_words(built, visited):
    images = {image["src"]: image for page in visited.values() for image in page.images if image["figure"]}
    drawn = [
        output
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(images) >= len({output["data"]["image/png"] for output in drawn}) > 0
    for image in images.values():
        assert image["shown"], image
        assert len(image["alt"].split()) >= 4 and "/" not in image["alt"].split()[0], image


@pytest.mark.browser
def test_on_a_phone_pages_do_not_scroll_sideways_and_figures_stay_legible(chromium, visited):
    page = chromium.new_page(viewport=PHONE)
    for path in visited:
        page.goto(path.as_uri())
        assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"], path.name
        sizes = page.evaluate("() => [...document.images].map(i => [i.alt, i.clientWidth / i.naturalWidth])")
        # Their text is drawn with 10 points, 14 pixels.
        assert [size for size in sizes if size[1] < 0.5] == [], path.name
    page.close()


@pytest.mark.browser
def test_figures_are_on_white_in_the_dark(chromium, built):
    page = chromium.new_page(color_scheme="dark")
    page.goto((built / "notebooks" / "06_barriers.html").as_uri())
    colour = "e => getComputedStyle(e).backgroundColor"
    assert page.eval_on_selector("body", colour) != "rgb(255, 255, 255)"
    figures = page.locator("article img").all()
    assert figures and {figure.evaluate(colour) for figure in figures} == {"rgb(255, 255, 255)"}
    page.close()


@pytest.mark.browser
def test_the_film_of_a_training_plays(chromium, built):
    page = chromium.new_page()
    page.goto((built / "notebooks" / "04_mask_visualization.html").as_uri())
    frame = page.wait_for_selector("iframe").content_frame()
    before = frame.wait_for_selector("#step").inner_text()
    frame.fill("#moment", "2")
    assert frame.inner_text("#step") != before
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("words, found", [("gradient_grow", "api/truly_sparse"), ("roofline", "06_barriers")])
def test_search_finds_from_files(chromium, built, words, found):
    page = chromium.new_page()
    page.goto((built / "index.html").as_uri())
    page.fill("input[name=q]", words)
    page.press("input[name=q]", "Enter")
    page.wait_for_selector(f"#search-results a[href*='{found}']", timeout=20_000)
    page.close()


def violations(page, part):
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": ["wcag2a", "wcag2aa"], "rules": KNOWN, "resultTypes": ["violations"]}
    return [
        (violation["id"], node["html"])
        for violation in Axe().run(page, context=part, options=options).response["violations"]
        for node in violation["nodes"]
    ]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_contrast_and_texts_of_a_page_satisfy_wcag_aa(chromium, built, name, scheme):
    page = chromium.new_page(color_scheme=scheme)
    page.goto((built / f"{name}.html").as_uri())
    assert len(page.locator(KINDS[name]).inner_text()) > 500
    assert violations(page, KINDS[name]) == []
    page.close()


@pytest.mark.browser
def test_pale_text_is_noticed(chromium, built):
    page = chromium.new_page(color_scheme="light")
    page.goto((built / "search.html").as_uri())
    page.evaluate("() => { document.querySelector('article').innerHTML += '<p style=\"color: #bbb\">pale</p>'; }")
    assert "color-contrast" in {rule for rule, _ in violations(page, "article")}
    page.close()
