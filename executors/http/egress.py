"""The egress policy: which targets are well-formed and which addresses a tool may reach. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from yarl import URL

from contracts.tools.api import EgressRule
from contracts.tools.policy import host_matches
from executors.http.addresses import (
    Address,
    is_ambiguous_number,
    is_never,
    is_public,
    parse_address,
)

MAX_HOST_CHARS = 253
_AUTHORITY_END = re.compile(r"[/?#]")


class EgressDenied(Exception):
    """The tool may not reach this target or the address behind it. The text names no address."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A well-formed target. `host` is in lower case, without a trailing dot.

    `address` is set if the host is a literal address.
    """

    url: URL
    host: str
    port: int
    address: Address | None


def parse_target(text: str) -> HttpTarget:
    """Returns the target that `text` names.

    Raises:
        EgressDenied: not http(s), with credentials or a fragment, or with an ambiguous host.
    """
    try:
        url = URL(text)
        scheme, host, port = url.scheme, url.host, url.port
    except ValueError:
        raise EgressDenied("the tool's target is not a URL") from None
    if scheme not in {"http", "https"} or not host or not port:
        raise EgressDenied("the tool's target must be an http or https URL with a host")
    if (
        "@" in _AUTHORITY_END.split(text.partition("://")[2], maxsplit=1)[0]
        or url.fragment
        or "\\" in text
        or not text.isprintable()
    ):
        raise EgressDenied(
            "the tool's target must not hold credentials, a fragment or control characters"
        )
    host = host.lower().rstrip(".")
    if not host or len(host) > MAX_HOST_CHARS or "%" in host or is_ambiguous_number(host):
        raise EgressDenied(
            "the tool's target names its host in an ambiguous form: "
            "write a name or a canonical address"
        )
    return HttpTarget(
        url.with_host(host) if host != url.host else url, host, port, parse_address(host)
    )


@dataclass(frozen=True)
class EgressPolicy:
    """A tool's own rules below the installation's `ceiling`.

    Without rules a tool may reach what the ceiling allows; without a ceiling, public addresses
    only. With both, both must match. Some addresses are never reached, whatever the rules say.
    """

    rules: tuple[EgressRule, ...] = ()
    ceiling: tuple[EgressRule, ...] = ()

    def check(self, target: HttpTarget) -> None:
        """Checks the target before anything is resolved. Raises EgressDenied."""
        if target.address is not None:
            self.admit(target.host, target.port, [target.address])
        elif not all(
            any(_names(rule, target.host, target.port) for rule in layer)
            for layer in self._layers()
        ):
            raise EgressDenied("the tool's egress rules do not allow its target's host and port")

    def admit(self, host: str, port: int, addresses: Sequence[Address]) -> list[Address]:
        """Returns the addresses that the tool may connect to.

        Raises:
            EgressDenied: the policy allows none of them, or one is never reached: such a name is
                hostile.
        """
        if any(is_never(address) for address in addresses):
            raise EgressDenied("the tool's target resolves to an address that tools never reach")
        allowed = [address for address in addresses if self._allows(host, port, address)]
        if not allowed:
            raise EgressDenied("the tool's egress rules do not allow its target's address")
        return allowed

    def _allows(self, host: str, port: int, address: Address) -> bool:
        layers = self._layers()
        if not layers:
            return is_public(address)
        return all(any(_matches(rule, host, port, address) for rule in layer) for layer in layers)

    def _layers(self) -> list[tuple[EgressRule, ...]]:
        return [layer for layer in (self.rules, self.ceiling) if layer]


def _names(rule: EgressRule, host: str, port: int) -> bool:
    return (rule.host is None or host_matches(rule.host, host)) and rule.port in {None, port}


def _matches(rule: EgressRule, host: str, port: int, address: Address) -> bool:
    if not _names(rule, host, port):
        return False
    if rule.cidr is None:
        return is_public(address)
    return address in ip_network(rule.cidr, strict=False)  # False for another address family
