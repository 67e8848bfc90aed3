"""Every notebook in a real JupyterLab: opened, run by the application's own command, and looked at."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

from tools import lab as jupyterlab
from tools.run_notebooks import WIDGET_VIEW

pytestmark = pytest.mark.browser

NOTEBOOKS = sorted(jupyterlab.NOTEBOOKS.glob("*.ipynb"))
# The badge at a notebook's top: a link to Colab with Colab's own picture, the one thing that is not on this machine.
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
SECONDS = 300  # far above any notebook's budget: a test of what happens, not of how fast
DRAWN = 60_000  # milliseconds in which an output is drawn, likewise


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTORIAL_PROFILE", "quick")
        with jupyterlab.jupyter_lab(tmp_path_factory.mktemp("lab")) as running:
            yield running


@pytest.fixture
def page(chromium):
    """A page that asks only this machine, and gets what it asks for."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 860})
    asked, refused = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("websocket", lambda socket: asked.append(socket.url))
    opened.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    opened.on("response", lambda r: refused.append((r.url, r.status)) if r.status >= 400 else None)
    yield opened
    failed = list(refused)  # before closing, which breaks off what is under way
    opened.close()
    local = {url for url in asked if not url.startswith(("data:", "blob:", "about:"))} - {BADGE}
    assert {urlsplit(url).hostname for url in local} == {"127.0.0.1"}
    assert [failure for failure in failed if failure[0] != BADGE] == []


def data_of(cell):
    """Return the MIME bundles of a cell's outputs."""
    return [output["data"] for output in cell["outputs"] if "data" in output]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_to_its_end(lab, page, path):
    jupyterlab.opened(page, lab, path.name)
    cells = [c for c in jupyterlab.run_all(page, SECONDS) if c["cell_type"] == "code"]
    on_disk = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert errors == []
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(on_disk) + 1))

    widgets = [cell for cell in cells if any(WIDGET_VIEW in data for data in data_of(cell))]
    players = [cell for cell in cells if any("<iframe" in str(data.get("text/html")) for data in data_of(cell))]
    source = "\n".join(cell["source"] for cell in cells)
    assert len(players) >= len(re.findall(r"^topology_player\(", source, flags=re.MULTILINE))
    for cell in widgets:
        shown = jupyterlab.output_area(page, cell["index"])
        # Each view is drawn, none says that its model is missing.
        shown.locator(".jupyter-widgets").first.wait_for(timeout=DRAWN)
        assert "Error displaying widget" not in shown.inner_text()
    for cell in players:
        player = jupyterlab.output_area(page, cell["index"]).locator("iframe").content_frame
        player.locator("canvas[aria-label]").wait_for(timeout=DRAWN)
    jupyterlab.close(page)


def test_a_failing_cell_is_seen(lab, page):
    """The test above can fail: JupyterLab stops at the error, and the model says so."""
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in ("1 / 0", "print('after')")])
    bad.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}  # or JupyterLab asks for one
    nbformat.write(bad, Path(lab.folder) / "bad.ipynb")
    jupyterlab.opened(page, lab, "bad.ipynb")
    first, second = jupyterlab.run_all(page, SECONDS)
    assert [output["output_type"] for output in first["outputs"]] == ["error"] and second["outputs"] == []
    jupyterlab.close(page)
