"""Sphinx's settings for the site, which ``python -m tools.site`` builds."""

from importlib.metadata import metadata

from tools.site_extension import linkcode_resolve  # noqa: F401  (a setting of sphinx.ext.linkcode)

PROJECT = metadata("decade-of-sparse-training")

project = "A Decade of Sparse Training"
html_title = project
language = "en"
release = PROJECT["Version"]
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "sphinx_copybutton",
    "myst_nb",
    "tools.site_extension",
]

# Notebooks are shown as they are stored.
nb_execution_mode = "off"
nb_merge_streams = True
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

# Headings already name the modules.
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
# Names of other packages, whose reference is elsewhere, and of the compiled machinery, which has none.
nitpick_ignore_regex = [
    ("py:.*", r"(?!truly_sparse|tutorial_lib)[a-z_]+(\.\w+)+"),
    ("py:.*", r"truly_sparse\.cpu\..*|LinearIndex|ConvIndex|truly_sparse\.places\.Sizes"),
    # Type hints that are written without their module.
    ("py:.*", r"Module|Tensor|PARAM_LIST|GrowChoice|PruneScore|truly_sparse\.adapters\.Module"),
]

# Anchors written as HTML, as in the glossary, are unknown to Sphinx; tests/test_site.py follows every link.
suppress_warnings = ["myst.xref_missing"]

html_theme = "furo"
pygments_dark_style = "a11y-dark"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_domain_indices = False
html_show_copyright = False
