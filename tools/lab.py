"""Run notebooks in a real JupyterLab, in a real browser; as a program, take README's pictures of it.

    python tools/lab.py

The server has a free port, a token, and configuration, runtime and workspace folders of its own, so that neither a
running JupyterLab nor anybody's settings come into play. The browser is a Chromium that is already there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutorial_lib import save_result
from tutorial_lib.project import FIGURES, ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

NOTEBOOKS = ROOT / "notebooks"
START_SECONDS = 60
STOP_SECONDS = 30
# Of README's pictures: the notebook, and the text of the cell whose output is to be seen.
PICTURES = {"lab_player": ("04_mask_visualization", "topology_player("), "lab_race": ("01_paradox", "axis.plot(")}


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab.

    Attributes:
        address: ``http://127.0.0.1:port``.
        token: what opens it.
        folder: what it shows.
    """

    address: str
    token: str
    folder: Path


def chromium_program() -> str | None:
    """Return the path of a Chromium on this machine, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def chromium_browser() -> Iterator[Browser]:
    """A headless Chromium.

    Raises:
        FileNotFoundError: there is none on this machine.
    """
    from playwright import sync_api  # an extra that only browser work needs

    program = chromium_program()
    if program is None:
        raise FileNotFoundError("no Chromium here: apt install chromium, or run make test-browser")
    with sync_api.sync_playwright() as running:
        # All frames share one process. With one of its own, the player was sometimes not drawn; the cause is not known.
        args = ["--no-sandbox", "--disable-site-isolation-trials"]
        browser = running.chromium.launch(executable_path=program, args=args)
        yield browser
        browser.close()


@contextlib.contextmanager
def jupyter_lab(home: Path) -> Iterator[Lab]:
    """Start JupyterLab on a copy of the notebooks in ``home``, and end it afterwards.

    Raises:
        RuntimeError: it does not answer; what it said is in the message.
    """
    folder, log = home / "notebooks", home / "lab.log"
    folder.mkdir()
    for path in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(path, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, address = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    own = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    own |= {f"JUPYTERLAB_{name}_DIR": str(home / f"lab_{name.lower()}") for name in ("SETTINGS", "WORKSPACES")}
    # Or its server asks the network for news and for newer versions.
    settings = home / "lab_settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"checkForUpdates": False, "fetchNews": "false"}), encoding="utf-8")
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", f"--ServerApp.root_dir={folder}"]
    options += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    options += [f"--IdentityProvider.token={token}"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("w", encoding="utf-8") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=os.environ | own | {"PYTHONPATH": path},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(server, f"{address}/api/status?token={token}", log)
        yield Lab(address, token, folder)
    finally:
        ended(server, STOP_SECONDS)


def ended(process: subprocess.Popen, seconds: float) -> int:
    """Ask a process to end; end it by force where it hangs while closing. Return its exit status."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _wait_for(server: subprocess.Popen, url: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")


OPEN = """async ([path, factory]) => {
    const app = window.jupyterapp;
    await app.restored;
    window.panel = await app.commands.execute('docmanager:open', {path, factory});
}"""
RUN = """() => {
    window.finished = undefined;
    window.jupyterapp.commands.execute('notebook:run-all-cells').then(
        () => { window.finished = 'ran'; }, error => { window.finished = String(error); });
}"""
CELLS = """() => window.panel.content.widgets.map((cell, index) => {
    const {cell_type, source, execution_count, outputs} = cell.model.toJSON();
    return {index, cell_type, source, execution_count, outputs};
})"""
# JupyterLab draws only what is near the window.
SHOW = """async index => {
    window.panel.content.activeCellIndex = index;
    await window.panel.content.scrollToItem(index, 'start');
    const area = window.panel.content.widgets[index].outputArea.node;
    area.scrollIntoView({block: 'center'});
}"""
CLOSE = "async () => { await window.panel.sessionContext.shutdown(); await window.panel.context.save(); }"


def opened(page: Page, lab: Lab, name: str) -> None:
    """Open a notebook in JupyterLab and wait until its kernel is ready."""
    page.goto(f"{lab.address}/lab/workspaces/{Path(name).stem}?token={lab.token}")
    page.wait_for_function("() => window.jupyterapp !== undefined", timeout=60_000)
    page.evaluate(OPEN, [name, "Notebook"])
    kernel = "() => window.panel.context.isReady && window.panel.sessionContext.session?.kernel?.status === 'idle'"
    page.wait_for_function(kernel, timeout=60_000)


def run_all(page: Page, seconds: float) -> list[dict[str, Any]]:
    """Run all cells by JupyterLab's own command; return the cells as they then are in its model.

    Raises:
        TimeoutError: not done after so many seconds (playwright's).
    """
    page.evaluate(RUN)
    page.wait_for_function("() => window.finished !== undefined", timeout=1e3 * seconds)
    # The command is done when the kernel has replied; the last outputs may still be on their way.
    page.wait_for_function("() => window.panel.sessionContext.session.kernel.status === 'idle'", timeout=30_000)
    return page.evaluate(CELLS)


def output_area(page: Page, index: int) -> Locator:
    """Scroll to a cell's output; return where it is: JupyterLab may draw it anew, and then its elements are others."""
    page.evaluate(SHOW, index)
    return page.locator(f'.jp-Notebook [data-windowed-list-index="{index}"] .jp-Cell-outputArea')


def close(page: Page) -> None:
    """End the open notebook's kernel."""
    page.evaluate(CLOSE)


def main() -> None:
    """Take the pictures of two notebooks, as they look after a run, into ``figures/``."""
    with tempfile.TemporaryDirectory() as home, jupyter_lab(Path(home)) as lab, chromium_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        for picture, (stem, text) in PICTURES.items():
            opened(page, lab, f"{stem}.ipynb")
            cells = run_all(page, seconds=600)
            index = next(c["index"] for c in cells if c["cell_type"] == "code" and text in c["source"])
            area = output_area(page, index)
            page.wait_for_timeout(1_000)  # the scrolled-to cell is drawn
            if area.locator("iframe").count():
                player = area.locator("iframe").content_frame
                player.locator("#moment").fill("9")  # an early moment, when much moves
                player.locator("#palette").select_option(index=1)  # colours that all can tell apart
                page.wait_for_timeout(500)
            page.screenshot(path=FIGURES / f"{picture}.png")
            version = page.evaluate("() => window.jupyterapp.version")
            executed = sum(c["execution_count"] is not None for c in cells if c["cell_type"] == "code")
            values = {"notebook": stem, "cells run": executed, "jupyterlab": version, "chromium": browser.version}
            save_result(picture, values, command="python tools/lab.py")
            close(page)


if __name__ == "__main__":
    main()
