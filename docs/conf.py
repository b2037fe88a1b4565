"""`make docs`: the pages and an API reference, by Sphinx."""

project = "VLA for ROS 2"
author = "VLA for ROS 2 maintainers"
copyright = "VLA for ROS 2 maintainers, Apache-2.0"  # Sphinx's name for it

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
exclude_patterns = ["api/modules.rst"]
html_theme = "furo"
html_title = project

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["launch", "launch_xml", "ros2doctor", "tensorrt", "wandb"]

myst_heading_anchors = 3
# Pages are read on their own as well, and link to files of the repository beside docs/; docstrings
# are plain text.
suppress_warnings = ["autodoc", "docutils", "myst.xref_missing", "ref", "toc.not_included"]
