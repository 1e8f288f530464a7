"""Fixtures of the backups' tests."""

from tests.support.launcher.backups import archive, empty, folders, source

__all__ = ["archive", "empty", "folders", "source"]
