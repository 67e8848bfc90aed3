"""Nothing is unpickled, evaluated or handed to a shell: a scan of the code, shown to catch what it looks for."""

import ast
import json

import pytest

from tutorial_lib import TopologyRecorder, mask_model, topology_player
from tutorial_lib.interface import sparse_layers
from tutorial_lib.project import ROOT

CODE = [*sorted(ROOT.glob("tutorial_lib/**/*.py")), *sorted(ROOT.glob("tools/*.py"))]
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
    assert dangers(path.read_text(encoding="utf-8")) == []
    survived("safety scans")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_safe(path, survived):
    for source in cells(path):
        try:
            assert dangers(source) == []
        except SyntaxError:  # a line for IPython in the middle of a statement
            pytest.fail(f"{path.name} has a cell that cannot be read")
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
