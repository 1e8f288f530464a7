"""Redacts secrets in what a tool sends back, so that it cannot give a credential to the model."""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Iterable
from typing import Any

MASK = "[redacted]"
# Shorter values would match by chance; a secret this short protects nothing.
SHORTEST = 4


class Redactor:
    """Replaces each secret in keys and texts, also in base64 or percent-encoded."""

    def __init__(self, secrets: Iterable[str]) -> None:
        kept = {secret for secret in secrets if len(secret) >= SHORTEST}
        self._needles = sorted(
            {form for secret in kept for form in _forms(secret)}, key=len, reverse=True
        )

    def text(self, value: str) -> str:
        """Returns `value` without the secrets."""
        for needle in self._needles:
            if needle in value:
                value = value.replace(needle, MASK)
        return value

    def json(self, value: Any) -> Any:
        """Returns a JSON value without the secrets; changes its containers in place."""
        if not self._needles:
            return value
        holder = [value]
        open_containers: list[Any] = [holder]
        while open_containers:
            container = open_containers.pop()
            self._clean_keys(container)
            for key, item in list(
                container.items() if isinstance(container, dict) else enumerate(container)
            ):
                if isinstance(item, str):
                    container[key] = self.text(item)
                elif isinstance(item, dict | list):
                    open_containers.append(item)
        return holder[0]

    def _clean_keys(self, container: Any) -> None:
        if isinstance(container, dict) and any(self.text(key) != key for key in container):
            cleaned = {self.text(key): item for key, item in container.items()}
            container.clear()
            container.update(cleaned)


def _forms(secret: str) -> set[str]:
    raw = secret.encode()
    encoded = {
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
        urllib.parse.quote(secret, safe=""),
    }
    return {secret, *encoded, *(form.rstrip("=") for form in encoded)}
