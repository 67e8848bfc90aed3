"""The player: the page holds exactly the recorded run, for any layer names, and a real browser draws it."""

import base64
import html
import json
import math
import re
import stat
import zlib
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truly_sparse import InvalidArgumentError
from tutorial_lib import TopologyRecorder, player, topology_player, viz

# Square, long in either direction, a convolution, and one with more rows than the canvas limit.
SHAPES = {"square": (24, 30), "wide": (6, 700), "tall": (700, 5), "conv": (4, 2, 3, 3), "huge": (4100, 4)}
NASTY = """</script><img src="http://nowhere.invalid/x" onerror='alert(1)'> & <!-- \u2028 "q" """


def layer_with(shape, mask):
    """Return a stand-in for a layer with the two attributes that the recorder reads."""
    active = torch.from_numpy(mask.nonzero()[0])
    return SimpleNamespace(dense_shape=shape, active=lambda: active)


def recorded(shapes, moments=3, seed=0):
    """Return a recorder of random masks with about a third of the connections; its steps are 0, 100, 200, …"""
    rng, recorder = np.random.default_rng(seed), TopologyRecorder()
    for moment in range(moments):
        layers = {name: layer_with(shape, rng.random(math.prod(shape)) < 0.3) for name, shape in shapes.items()}
        recorder.record(layers, 100 * moment)
    return recorder


class DataOf(HTMLParser):
    """Parses a page as a browser does and stores the text of its data element."""

    def __init__(self, page):
        super().__init__()
        self.text, self.inside = "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script" and ("id", "data") in attrs

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.text += data if self.inside else ""


def data_of(page):
    return json.loads(DataOf(page).text)


def unpacked(frames):
    """Decode frames one number at a time, as the page does: a set of connections per frame."""
    numbers, value, unit = [], 0, 1
    for byte in zlib.decompress(base64.b64decode(frames)):
        value, unit = value + (byte & 127) * unit, unit * 128
        if byte < 128:
            numbers, value, unit = [*numbers, value], 0, 1
    rest = iter(numbers)
    topologies, active = [], []
    for length in rest:
        gone = set(np.cumsum([next(rest) for _ in range(length)], dtype=int).tolist())
        grown = np.cumsum([next(rest) for _ in range(next(rest))], dtype=int).tolist()
        active = sorted([c for rank, c in enumerate(active) if rank not in gone] + grown)
        topologies.append(active)
    return topologies


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 2**45) | st.integers(0, 300), max_size=20), min_size=1, max_size=5))
def test_frames_hold_every_topology(topologies):
    arrays = [np.array(sorted(topology), dtype=np.int64) for topology in topologies]
    assert unpacked(player._pack_frames(arrays)) == [sorted(topology) for topology in topologies]


def test_the_page_holds_what_was_recorded():
    recorder = recorded(SHAPES)
    data = data_of(topology_player(recorder, title="A run").html)
    assert (data["title"], data["recorded"], data["steps"]) == ("A run", 3, [0, 100, 200])
    assert [tuple(colours) for colours in data["palettes"].values()] == list(viz.PALETTES.values())
    for layer, (name, shape) in zip(data["layers"], SHAPES.items(), strict=True):
        assert (layer["name"], tuple(layer["shape"])) == (name, shape)
        assert unpacked(layer["frames"]) == [topology.tolist() for topology in recorder.topologies(name)]
    assert [layer["name"] for layer in data_of(topology_player(recorder, ["tall"]).html)["layers"]] == ["tall"]


def test_names_cannot_break_out_of_the_page():
    shown = topology_player(recorded({NASTY: (3, 4)}), title=NASTY)
    template = player.TEMPLATE.read_text(encoding="utf-8")
    assert data_of(shown.html)["layers"][0]["name"] == data_of(shown.html)["title"] == NASTY
    for dangerous in ("</script>", "<img", "<!--"):
        assert shown.html.count(dangerous) == template.count(dangerous)
    (srcdoc,) = re.findall(r'srcdoc="([^"]*)"', shown._repr_html_())
    assert "<" not in srcdoc and html.unescape(srcdoc) == shown.html


def test_nothing_is_fetched():
    page = topology_player(recorded({"a": (3, 4)})).html
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(", page)


@pytest.mark.parametrize("kept", [2, 5, 30])
def test_moments_are_left_out_evenly_until_the_page_fits(monkeypatch, kept):
    recorder = recorded({"a": (40, 50)}, moments=30)
    sizes = {n: len(player._player(recorder, ["a"], "t", n)._repr_html_().encode()) for n in range(2, 31)}
    monkeypatch.setattr(player, "MAX_BYTES", sizes[kept])
    shown = topology_player(recorder, title="t")
    steps = data_of(shown.html)["steps"]
    assert len(steps) == kept and len(shown.html) < len(shown._repr_html_().encode()) == sizes[kept]
    assert (steps[0], steps[-1]) == (0, 2900) and np.ptp(np.diff(steps)) <= 100
    topologies = [topology.tolist() for topology in recorder.topologies("a")]
    assert unpacked(data_of(shown.html)["layers"][0]["frames"]) == [topologies[step // 100] for step in steps]


def test_layers_that_cannot_fit_are_refused(monkeypatch):
    recorder = recorded({"a": (40, 50)}, moments=4)
    monkeypatch.setattr(player, "MAX_BYTES", 14_000)
    with pytest.raises(InvalidArgumentError, match=r"layers=\['a'\]: 2 moments .* pass fewer or smaller layers"):
        topology_player(recorder)


def test_a_large_layer_stays_below_the_limit():
    shown = topology_player(recorded({"fc": (1000, 200)}, moments=20))
    assert 2 <= len(data_of(shown.html)["steps"]) < 20
    assert 400_000 < len(shown.html.encode()) <= len(shown._repr_html_().encode()) <= 500_000


def test_refusals():
    recorder = recorded({"a": (3, 4)})
    with pytest.raises(InvalidArgumentError, match="moments=0"):
        topology_player(TopologyRecorder())
    with pytest.raises(InvalidArgumentError, match=r"layers=\[\]; give a list"):
        topology_player(recorder, [])
    with pytest.raises(InvalidArgumentError, match="no recorded layer 'fc9'; choose among 'a'"):
        topology_player(recorder, ["fc9"])


def test_save_replaces_the_file_whole(tmp_path, monkeypatch):
    shown, path = topology_player(recorded({"größe": (3, 4)})), tmp_path / "run.html"
    path.write_text("old")
    shown.save(path)
    shown.save(str(path))
    assert path.read_text(encoding="utf-8") == shown.html and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & stat.S_IRUSR
    path.write_text("old")
    monkeypatch.setattr(player.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        shown.save(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="missing"):
        shown.save(tmp_path / "missing" / "run.html")


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def page(chromium):
    """A browser page; fails on console messages, errors, dialogs, and requests other than the opened file."""
    opened = chromium.new_page(viewport={"width": 1000, "height": 860})
    opened.set_default_timeout(10_000)
    messages, requests = [], []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("dialog", lambda dialog: messages.append(dialog.message))
    opened.on("request", lambda request: requests.append(request.url))
    yield opened
    assert messages == [] and [url for url in requests if not url.startswith(("file:", "about:"))] == []
    assert len(requests) <= 1
    opened.close()


def opened_at(page, path, name, step):
    """Open a saved player and wait until it shows a layer at a step."""
    page.goto(path.as_uri())
    shows(page, name, step)


def shows(page, name, step):
    page.locator(f'#mask[aria-label^="Mask of {name} at step {step}:"]').wait_for()


def pixels(page):
    """Return the pixels of the canvas: uint8 [height, width, 4]."""
    script = """canvas => [canvas.height, canvas.width,
        Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)]"""
    height, width, values = page.locator("#mask").evaluate(script)
    return np.array(values, dtype=np.uint8).reshape(height, width, 4)


def expected(recorder, name, moment, palette="published"):
    """Return the expected image of a layer, one pixel per connection: uint8 [out, in · kernel, 4]."""
    before, after = (recorder.mask(name, m).reshape(SHAPES[name][0], -1) for m in (max(moment - 1, 0), moment))
    colours = [[*bytes.fromhex(colour[1:]), 255] for colour in viz.PALETTES[palette]]
    return np.array(colours, dtype=np.uint8)[viz.mask_states(before, after)]


@pytest.fixture
def saved(tmp_path):
    recorder = recorded(SHAPES)
    topology_player(recorder).save(tmp_path / "run.html")
    return recorder, tmp_path / "run.html"


@pytest.mark.browser
@pytest.mark.parametrize("name", ["square", "conv"])
def test_every_pixel_is_the_recorded_state(page, saved, name):
    recorder, path = saved
    opened_at(page, path, "square", 0)
    page.get_by_label("Layer").select_option(name)
    shows(page, name, 0)
    assert np.array_equal(pixels(page), expected(recorder, name, 0))
    page.get_by_role("slider", name="Step").focus()
    page.keyboard.press("ArrowRight")
    shows(page, name, 100)
    assert np.array_equal(pixels(page), expected(recorder, name, 1))
    page.get_by_label("Colours").select_option("Colour-blind safe")
    page.get_by_role("slider", name="Step").fill("2")
    shows(page, name, 200)
    assert np.array_equal(pixels(page), expected(recorder, name, 2, "colorblind"))


@pytest.mark.browser
@pytest.mark.parametrize("name", ["wide", "tall"])
def test_long_layers_are_split_into_bands_without_loss(page, saved, name):
    recorder, path = saved
    opened_at(page, path, "square", 0)
    page.get_by_label("Layer").select_option(name)
    page.get_by_role("slider", name="Step").fill("1")
    shows(page, name, 100)
    drawn, whole = pixels(page), expected(recorder, name, 1)
    if name == "tall":
        drawn, whole = drawn.swapaxes(0, 1), whole.swapaxes(0, 1)
    high = len(whole)
    bands = [drawn[start : start + high] for start in range(0, len(drawn), high + 2)]
    assert len(bands) > 1
    laid_out = np.concatenate(bands, axis=1)
    assert np.array_equal(laid_out[:, : whole.shape[1]], whole) and not laid_out[:, whole.shape[1] :].any()


@pytest.mark.browser
def test_a_pixel_of_a_huge_layer_shows_the_changes_within_its_square(page, saved):
    recorder, path = saved
    opened_at(page, path, "square", 0)
    page.get_by_label("Layer").select_option("huge")
    page.get_by_role("slider", name="Step").fill("1")
    shows(page, "huge", 100)
    states = viz.mask_states(recorder.mask("huge", 0), recorder.mask("huge", 1))
    assert "3×3 connections" in page.locator("#layout").inner_text()
    drawn = pixels(page)
    bands = [drawn[:, start : start + 2] for start in range(0, drawn.shape[1], 4)]
    laid_out = np.concatenate(bands)
    rank = np.array([1, 0, 2, 3])[states]  # absent, active, pruned, regrown: the later ones cover the others
    covering = np.pad(rank, ((0, 1), (0, 2))).reshape(1367, 3, 2, 3).max((1, 3))
    colours = np.array([[*bytes.fromhex(viz.PALETTES["published"][i][1:]), 255] for i in (1, 0, 2, 3)], dtype=np.uint8)
    assert np.array_equal(laid_out[:1367], colours[covering])


@pytest.mark.browser
def test_the_legend_counts(page, saved):
    recorder, path = saved
    opened_at(page, path, "square", 0)
    page.get_by_role("slider", name="Step").fill("2")
    shows(page, "square", 200)
    states = viz.mask_states(recorder.mask("square", 1), recorder.mask("square", 2))
    kept, absent, pruned, grown = np.bincount(states.ravel(), minlength=4)
    legend = page.locator("#legend").inner_text()
    for words in (
        f"active before and after {kept}",
        f"absent {absent}",
        f"newly pruned {pruned}",
        f"newly regrown {grown}",
        f"{kept + grown} of 720 connections active: density {100 * (kept + grown) / 720:.2f}%",
    ):
        assert words in legend
    assert page.locator("#step").inner_text() == "200, changes since 100"
    page.get_by_text("All 3 recorded steps shown").click()
    assert page.locator("#steps").inner_text() == "0; 100; 200"


@pytest.mark.browser
def test_play_runs_to_the_last_frame_and_restarts(page, saved):
    _, path = saved
    opened_at(page, path, "square", 0)
    page.keyboard.press("Tab")  # layer
    page.keyboard.press("Tab")  # colours
    page.keyboard.press("Tab")  # play
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Pause").wait_for()
    shows(page, "square", 100)
    shows(page, "square", 200)
    page.get_by_role("button", name="Play").click()
    shows(page, "square", 0)
    page.get_by_role("button", name="Pause").click()
    page.wait_for_timeout(800)
    shows(page, "square", 0)


@pytest.mark.browser
def test_names_are_text_in_the_page(page, tmp_path):
    topology_player(recorded({NASTY: (3, 4), "b": (2, 2)}), title=NASTY).save(tmp_path / "nasty.html")
    page.goto((tmp_path / "nasty.html").as_uri())
    page.locator("#mask[aria-label]").wait_for()
    assert page.locator("#title").evaluate("e => e.textContent") == NASTY
    assert page.locator("#layer option").evaluate_all("options => options.map(o => o.textContent)") == [NASTY, "b"]
    assert page.locator("img").count() == 0


@pytest.mark.browser
def test_runs_in_a_narrow_frame_of_a_notebook(page):
    page.set_viewport_size({"width": 600, "height": 900})
    page.set_content(f"<h1>notebook</h1>{topology_player(recorded(SHAPES))._repr_html_()}")
    frame = page.frame_locator("iframe")
    frame.locator('#mask[aria-label^="Mask of square at step 0:"]').wait_for()
    frame.get_by_role("slider", name="Step").fill("1")
    frame.locator('#mask[aria-label^="Mask of square at step 100:"]').wait_for()
    assert frame.locator("html").evaluate("e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight")
    assert page.locator("h1").evaluate("e => getComputedStyle(e).fontSize") == "32px"


@pytest.mark.browser
def test_a_hidden_player_draws_nothing_and_no_error(page, tmp_path):
    topology_player(recorded({"a": (3, 4)})).save(tmp_path / "hidden.html")
    opened_at(page, tmp_path / "hidden.html", "a", 0)
    for display in ("none", ""):
        page.locator("#stage").evaluate("(e, display) => e.style.display = display", display)
        page.evaluate("() => show()")
    shows(page, "a", 0)


@pytest.mark.browser
def test_one_moment_is_shown_without_controls(page, tmp_path):
    topology_player(recorded({"a": (3, 4)}, moments=1)).save(tmp_path / "one.html")
    opened_at(page, tmp_path / "one.html", "a", 0)
    assert (
        page.get_by_role("button", name="Play").is_disabled() and page.get_by_role("slider", name="Step").is_disabled()
    )
