"""The documentation site: `make docs` builds it without a network, `make docs ONLINE=1` with links into other projects.

What reaches the network is asked for and never guessed: links into torch, transformers, PEFT and timm need their
inventories, and a build that was asked for them fails where they cannot be had.
"""

from __future__ import annotations

import logging
import os
from importlib import metadata

# autodoc imports the package, PEFT then torchao and bitsandbytes, and these have remarks to make about themselves.
for chatty in ("torch.utils._pytree", "bitsandbytes"):
    logging.getLogger(chatty).setLevel(logging.ERROR)

project = "Sensitune"
copyright = "the authors of Sensitune"
release = version = metadata.version("sensitune")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_heading_anchors = 4  # pages link to each other's headings, as on a forge
myst_enable_extensions = ["colon_fence", "deflist"]
# `<!-- name -->` in a table is what a script writes between, and `%` starts no comment in our pages.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_use_ivar = True  # a field is described once, where its class is

html_theme = "furo"
html_title = f"Sensitune {version}"
html_show_sourcelink = False
html_copy_source = False

if os.environ.get("SENSITUNE_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "transformers": ("https://huggingface.co/docs/transformers/main/en", None),
        "peft": ("https://huggingface.co/docs/peft/main/en", None),
        "timm": ("https://huggingface.co/docs/timm/main/en", None),
    }
    intersphinx_timeout = 20
