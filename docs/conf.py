"""Sphinx's settings: ``sphinx-build -W -b html docs docs/_build``, or ``tox -e docs``."""

from importlib import metadata

project = "fulfilment"
author = "the fulfilment authors"
copyright = "the fulfilment authors"
try:
    release = metadata.version("fulfilment")
except metadata.PackageNotFoundError:
    release = "0+checkout"

extensions: list[str] = []
exclude_patterns = ["_build"]
nitpicky = True
html_theme = "alabaster"
html_theme_options = {"description": "Takes orders, holds stock, takes money.", "fixed_sidebar": True}
html_show_sourcelink = False
