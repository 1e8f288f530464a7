"""The two ways a start can fail; the operator reads each as one line."""

from __future__ import annotations

from contracts.errors import ConfigurationError, Unavailable


class StartRefused(ConfigurationError):
    """This machine or this configuration cannot run the product; the message says what to do.

    It is shown to the operator alone, so it may name paths and ports.
    """


class ServiceFailed(Unavailable):
    """A child process died or did not become ready; starting it again may help."""
