"""The secrets of a call, and how a call ends that is never made."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from contracts.tools.api import ErrorKind, Outcome, SecretSource, SecretUse, SecretWithheld

UNSENDABLE = "the arguments cannot be sent: too deep, numbers beyond 64 bits, or lone surrogates"


class NotCalled(Exception):
    """The tool is not called. The text says why, and names no value."""

    def __init__(self, kind: ErrorKind, text: str) -> None:
        super().__init__(text)
        self.kind: ErrorKind = kind

    def outcome(self) -> Outcome:
        """Returns the outcome of the call."""
        return Outcome(False, error_kind=self.kind, error=str(self), attempts=0)


def find_secrets(
    source: SecretSource,
    uses: Iterable[SecretUse],
    tool_id: str,
    url: str | None,
    *,
    usable: Callable[[SecretUse, str], bool] = lambda _use, _value: True,
) -> list[tuple[SecretUse, str]]:
    """Returns each use with its value. An optional secret that is not configured is left out.

    Raises:
        NotCalled: a secret is missing, not `usable`, or withheld from this tool.
    """
    found = []
    for use in uses:
        try:
            value = source.value(use.name, tool_id, url)
        except SecretWithheld as error:
            raise NotCalled("denied", str(error)) from None
        if value is None and not use.required:
            continue
        if value is None or not usable(use, value):
            text = f"the tool needs the secret `{use.name}`, which is not configured or not usable"
            raise NotCalled("unavailable", text)
        found.append((use, value))
    return found
