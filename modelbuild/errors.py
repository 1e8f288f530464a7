"""Failures of the model build; each message is one line that says what to do."""

from __future__ import annotations

from contracts.errors import DaarionError


class ModelBuildError(DaarionError):
    """A model folder could not be built. Never raised in a running service."""

    type = "model_build_failed"


class DownloadFailed(ModelBuildError):
    """The wheel could not be fetched from the package index."""

    type = "model_download_failed"
    retryable = True


class ChecksumMismatch(ModelBuildError):
    """The wheel is not the pinned one."""

    type = "model_checksum_mismatch"
    retryable = True


class FormatError(ModelBuildError):
    """The packed model is truncated or not in the documented layout."""

    type = "model_format_invalid"


class CheckFailed(ModelBuildError):
    """The finished model gives answers that differ from the pinned ones."""

    type = "model_check_failed"
