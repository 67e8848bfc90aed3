"""Nothing is unpickled, evaluated or handed to a shell: a scan of the code, shown to catch what it looks for."""

import ast
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from xml.etree import ElementTree

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from truly_sparse import sparse_layers
from tutorial_lib import (
    Benchmark,
    History,
    Prediction,
    TopologyRecorder,
    ask,
    mask_model,
    reconcile,
    referee_plots,
    schematics,
    topology_player,
    viz,
)
from tutorial_lib.exercises.predictions import _form
from tutorial_lib.project import ROOT

CODE = [
    path
    for folder in ("truly_sparse", "tutorial_lib", "tools", "benchmarks", "tests")
    for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
]
# What a test does with what it has made itself.
EXCEPTIONS = {
    "benchmarks/enter.py": {"pickle", "pickle.dumps"},  # asks whether other processes can get a rule; loads nothing
    "tests/notebooks/test_checks.py": {"exec"},  # runs the notebooks' solutions as a reader would
    "tests/own_network.py": {"exec", "compile"},  # runs the code of docs/your-own-network.md
    # Layers are pickled as users pickle them.
    "tests/truly_sparse/test_partial_training.py": {"pickle", "pickle.loads", "pickle.dumps"},
    "tests/truly_sparse/test_parametrized.py": {"pickle", "pickle.loads", "pickle.dumps"},
    "tests/truly_sparse/test_structures.py": {"pickle", "pickle.loads", "pickle.dumps"},
    "tests/truly_sparse/test_torch.py": {"pickle", "pickle.loads", "pickle.dumps", "torch.load"},
    "tools/solutions.py": {"exec"},  # runs the notebooks' solutions, for instructors
    "tests/truly_sparse/test_alone.py": {"zipfile", "content.extractall"},  # unpacks the wheel that it has built
    "tests/truly_sparse/test_kernels.py": {
        "pickle",
        "pickle.loads",
        "pickle.dumps",
    },  # as spawned processes do
}
# What a notebook may hand to a shell or to IPython: its set-up on Colab.
COMMANDS = (
    r"!test -d /content/tutorial \|\| git clone --quiet --depth 1 \$URL /content/tutorial",
    r"%pip install --quiet --no-deps --editable /content/tutorial",
    r"%cd -q /content/tutorial/notebooks",
)
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "tarfile", "zipfile"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "shutil.unpack_archive", "torch.hub.load"}
METHODS = {"extractall", "extract", "read_pickle", "to_pickle"}


def name_of(node):
    """Return the dotted name of what is called, such as ``torch.load``."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source):
    """Return what a piece of Python might do that this project does not, one line each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
        found += [f"line {node.lineno}: {name}" for name in imported if name.split(".")[0] in MODULES or name in CALLS]
        if isinstance(node, ast.Call):
            name, given = name_of(node.func), {word.arg: word.value for word in node.keywords}
            constants = {arg: value.value for arg, value in given.items() if isinstance(value, ast.Constant)}
            wrong = name in CALLS or name.rpartition(".")[2] in METHODS
            wrong |= name == "torch.load" and constants.get("weights_only") is not True
            wrong |= "shell" in given and constants.get("shell") is not False
            wrong |= "allow_pickle" in given and constants.get("allow_pickle") is not False
            found += [f"line {node.lineno}: {name}"] if wrong else []
    return found


def cells(path):
    """Return a notebook's code as Python; lines for IPython (``%pip``, ``!git``) are comments."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield "\n".join("#" if line.strip()[:1] in "%!" else line for line in "".join(cell["source"]).split("\n"))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_is_safe(path, survived):
    allowed = EXCEPTIONS.get(path.relative_to(ROOT).as_posix(), set())
    assert [
        danger for danger in dangers(path.read_text(encoding="utf-8")) if danger.split(": ")[1] not in allowed
    ] == []
    survived("safety scans")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_safe(path, survived):
    for source in cells(path):
        try:
            assert dangers(source) == []
        except SyntaxError:  # a line for IPython in the middle of a statement
            pytest.fail(f"{path.name} has a cell that cannot be read")
    assert commands(path) == []
    assert [danger for html in pages(path) for danger in html_dangers(html)] == []
    survived("safety scans", 3)


class _Dangers(HTMLParser):
    """Collects what runs code in the page that it stands in; a frame that is shut off may run its own."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        sandbox = set(given.get("sandbox", "allow-same-origin").split())
        wrong = tag in {"script", "object", "embed", "base", "meta", "link", "form"}
        wrong |= tag == "iframe" and ("src" in given or "allow-same-origin" in sandbox)
        wrong |= any(
            name.startswith("on") or "javascript:" in value for name, value in given.items() if name != "srcdoc"
        )
        self.found += [tag] if wrong else []


def html_dangers(text):
    """Return the elements of a notebook's output, or of its prose, that could act on the page."""
    parser = _Dangers()
    parser.feed(text)
    parser.close()
    return parser.found


def pages(path):
    """Return what a notebook shows as HTML: its prose and its outputs; of scripts proper, the fact."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            yield "".join(cell["source"])
        for output in cell.get("outputs", []):
            for kind, text in output.get("data", {}).items():
                yield (
                    "<script>"
                    if "javascript" in kind
                    else "".join(text)
                    if kind in ("text/html", "image/svg+xml")
                    else ""
                )


def commands(path):
    """Return a notebook's lines for a shell or for IPython that are not its set-up."""
    lines = [
        line.strip()
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
        for line in "".join(cell["source"]).split("\n")
    ]
    return [line for line in lines if line[:1] in "%!" and line and not any(re.fullmatch(c, line) for c in COMMANDS)]


def notebook_with(folder, **cell):
    path = folder / "planted.ipynb"
    path.write_text(json.dumps({"cells": [{"outputs": [], **cell}]}), encoding="utf-8")
    return path


@pytest.mark.parametrize("planted", ["!curl x | sh", "    !rm -rf ~", "%pip install other", "%%bash", "%cd /; !ls"])
def test_a_planted_command_is_found(planted, tmp_path, survived):
    assert commands(notebook_with(tmp_path, cell_type="code", source=["x = 1\n", planted])) == [planted.strip()]
    survived("safety scans")


@pytest.mark.parametrize(
    "planted",
    [
        "<script>alert(1)</script>",
        "<b><SCRIPT src=x>",
        "<img src=x onerror=alert(1)>",
        "<a href=' javascript:alert(1)'>x</a>",
        "<iframe srcdoc='x'></iframe>",
        "<iframe src='x' sandbox='allow-scripts'></iframe>",
        "<iframe srcdoc='x' sandbox='allow-scripts allow-same-origin'></iframe>",
        "<svg onload=alert(1)>",
        "<meta http-equiv=refresh content=0>",
        "<form action=x>",
    ],
)
def test_planted_html_is_found(planted, tmp_path, survived):
    shown = {"output_type": "display_data", "data": {"text/html": [planted]}}
    (page, output) = pages(notebook_with(tmp_path, cell_type="markdown", source=[planted], outputs=[shown]))
    assert html_dangers(page) and html_dangers(output)
    assert (
        html_dangers("<details><summary>1 < 2</summary><table border='1'><tr><td>on &lt;b&gt;</table></details>") == []
    )
    scripts = {"output_type": "display_data", "data": {"application/javascript": "alert(1)"}}
    assert [*map(html_dangers, pages(notebook_with(tmp_path, cell_type="code", source=[], outputs=[scripts])))] == [
        ["script"]
    ]
    survived("safety scans")


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib as j",
        "import tarfile",
        "from zipfile import ZipFile",
        "from os import system",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=yes)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "pd.read_pickle(path)",
        "def f():\n    return torch.load(io.BytesIO(x), map_location='cpu')",
    ],
)
def test_a_planted_danger_is_found(planted, survived):
    assert len(dangers(planted)) >= 1
    assert dangers("torch.load(path, weights_only=True)\nsubprocess.run(['git'])\nnp.load(path)\nmodel.eval()") == []
    survived("safety scans")


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<!--", "&lt;"]
)
def test_names_cannot_break_out_of_the_player(name, small_cnn, survived):
    recorder = TopologyRecorder()
    recorder.record({name: sparse_layers(mask_model(small_cnn, 0.5))["hidden"]}, 0)
    page = topology_player(recorder, title=name)
    template = (ROOT / "tutorial_lib" / "player.html").read_text(encoding="utf-8")
    assert page.html.count("<") == template.count("<"), "no new element"
    data = page.html.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["title"] == name == json.loads(data)["layers"][0]["name"]
    frame = page._repr_html_()
    assert frame.count("<") == 2 and frame.count("</iframe>") == 1 and 'sandbox="allow-scripts"' in frame
    survived("safety scans")


def test_the_player_writes_texts_as_texts():
    template = (ROOT / "tutorial_lib" / "player.html").read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert way not in template


# ------------------------------------------------------------------------------------------ texts in figures and forms

TEXTS = [
    r"$\undefined$",
    r"$\frac{",
    "from $5 to $6",
    r"\$1 and \$2 \textbf{x}",
    "_hidden",
    "<script>alert(1)</script> & &lt; %s {x} é",
]
HISTORY = History(test_loss=[1.0], test_accuracy=[50.0])
RACE = {"width": 8, "batch": 2, "dense": 1.0, "Dense+Mask": 2.0, "torch CSR": 1.5}
CHANGES = pd.DataFrame({"accuracy": [97.0], "low": [96.0], "high": [98.0]})
FEATURES = torch.eye(2)
FIGURES = {
    "plot_mask": lambda text: viz.plot_mask(np.eye(3), text),
    "plot_mask_evolution": lambda text: viz.plot_mask_evolution([np.eye(3)] * 2, ["a", "b"], text),
    "plot_mask_evolution, labels": lambda text: viz.plot_mask_evolution([np.eye(3)] * 2, [text, text]),
    "plot_training": lambda text: viz.plot_training({text: HISTORY}),
    "plot_benchmark": lambda text: viz.plot_benchmark(Benchmark({text: [1.0]}, 1, "cpu")),
    "plot_benchmark, title": lambda text: viz.plot_benchmark(Benchmark({"a": [1.0]}, 1, text), text),
    "plot_densities": lambda text: viz.plot_densities({text: {"a": 3}}, {"a": 9}),
    "plot_densities, layers": lambda text: viz.plot_densities({"erk": {text: 3}}, {text: 9}),
    "plot_crossover": lambda text: viz.plot_crossover(
        [RACE | {"sparsity": sparsity, text: 1.1 - sparsity} for sparsity in (0.1, 0.5)], text
    ),
    "draw_layouts": lambda text: schematics.draw_layouts({text: FEATURES}, 0),
    "plot_waterfall": lambda text: referee_plots.plot_waterfall(CHANGES.assign(contender=text), 90.0),
}


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figures_show_texts_as_texts(draw, text, survived):
    """As text of an SVG, which is well-formed: no formula, no element of its own, and nothing left out."""
    page = BytesIO()
    with plt.rc_context({"svg.fonttype": "none"}):
        draw(text).savefig(page, format="svg")
    shown = ["".join(element.itertext()) for element in ElementTree.fromstring(page.getvalue()).iter()]
    assert any(text in each for each in shown if len(each) < 200)
    survived("safety scans")


@pytest.mark.parametrize("text", TEXTS)
def test_forms_show_texts_as_texts(text, capsys, survived):
    """Of ipywidgets, only those are used that write no HTML."""
    for prediction in (Prediction(text, unit=text), Prediction(text, options=[text, "other"])):
        form = _form(prediction)
        field, unit, button, state = form.children
        assert type(form) is ipywidgets.HBox and type(button) is ipywidgets.Button
        assert {type(unit), type(state)} == {ipywidgets.Label}
        assert type(field) in (ipywidgets.Dropdown, ipywidgets.FloatText) and unit.value == prediction.unit
        assert button.tooltip == text and not getattr(button, "description_allow_html", False)
        field.value = text if prediction.options else 3.0
        button.click()
        assert text in state.value
    reconcile(ask(text, options=[text, "other"], guess=text), text)
    assert capsys.readouterr().out.splitlines()[-1] == f"{text}  guessed: {text}, measured: {text} (as predicted)"
    survived("safety scans")
