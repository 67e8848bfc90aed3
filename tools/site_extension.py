"""What the site changes in the pages that Sphinx reads, as a Sphinx extension.

Figures of notebooks get their description, the text in italics beside them, as alternative text. All figures link to
themselves in full size. Pictures that lie elsewhere, such as Colab's badge, become their text. Names of source files
link to the repository. Diagrams, which GitHub draws from Mermaid's language, become HTML.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from tools.mermaid import diagram
from tools.site import source_address
from tutorial_lib.project import ROOT

LOGGER = logging.getLogger(__name__)
SOURCE_FILE = re.compile(r"(truly_sparse|tutorial_lib|tools|benchmarks|docs|tests|figures|notebooks)/[\w/.]*")


class RemoteImages(SphinxTransform):
    """Replace pictures that lie elsewhere by their text."""

    default_priority = 400

    def apply(self) -> None:
        """Change the document."""
        for image in list(self.document.findall(nodes.image)):
            if "://" in image["uri"]:
                image.replace_self(nodes.Text(image["alt"]))


class Figures(SphinxTransform):
    """Describe each picture and link it to itself.

    A picture without a text gets the description, in italics, at the start of the next paragraph or, where there is
    none, at the end of the paragraph before.
    """

    default_priority = 500

    def apply(self) -> None:
        """Change the document; a picture that nothing describes is a warning."""
        pieces = list(self.document.findall(lambda node: isinstance(node, (nodes.image, nodes.paragraph))))
        for place, image in enumerate(pieces):
            if isinstance(image, nodes.image):
                image["scale"] = 100  # Sphinx links pictures of a given scale to themselves
            if isinstance(image, nodes.image) and not image.get("alt"):
                after, before = pieces[place + 1 : place + 2], pieces[max(place - 1, 0) : place]
                near = [p[0] for p in after if p.children] + [p[-1] for p in before if p.children]
                texts = [node.astext() for node in near if isinstance(node, nodes.emphasis)]
                if texts:
                    image["alt"] = " ".join(texts[0].split())
                else:
                    LOGGER.warning("a figure has no description in italics beside it", location=image)


class SourceFiles(SphinxTransform):
    """Link the names of source files, such as ``tools/site.py``, to their pages or to the repository."""

    default_priority = 500

    def apply(self) -> None:
        """Change the document."""
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext()
            linked = isinstance(literal.parent, (nodes.reference, nodes.title, addnodes.pending_xref))
            if linked or not SOURCE_FILE.fullmatch(name) or not (ROOT / name).exists():
                continue
            page = str(Path(name).with_suffix(""))
            if page in self.env.found_docs:
                link = addnodes.pending_xref(
                    refdomain="std", reftype="doc", reftarget=f"/{page}", refdoc=self.env.docname, refexplicit=True
                )
            else:
                link = nodes.reference(refuri=source_address(ROOT / name))
            literal.replace_self(link)
            link += literal


class Mermaid(Directive):
    """A block of code in Mermaid's language."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the diagram."""
        return [nodes.raw("", diagram("\n".join(self.content)), format="html")]


def found_by_its_end(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Resolve a name of the reference that a docstring uses without its module."""
    objects = env.get_domain("py").objects
    end = f".{node['reftarget']}"
    found = [entry for name, entry in objects.items() if name.endswith(end) and entry.objtype != "module"]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], found[0].docname, found[0].node_id, content)


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Return where the repository shows the source of a documented object, or None for data."""
    try:
        value = functools.reduce(getattr, info["fullname"].split("."), sys.modules.get(info["module"]))
        value = inspect.unwrap(getattr(value, "fget", value))
        path, line = inspect.getsourcefile(value), inspect.getsourcelines(value)[1]
    except (AttributeError, TypeError):
        return None
    return f"{source_address(Path(path))}#L{line}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register everything with Sphinx."""
    for transform in (RemoteImages, Figures, SourceFiles):
        app.add_transform(transform)
    app.add_directive("mermaid", Mermaid)
    app.connect("missing-reference", found_by_its_end)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
