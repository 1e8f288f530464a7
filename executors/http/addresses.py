"""Which IP addresses tools never reach, or only by a CIDR rule. Pure functions.

Sources: the IANA special-purpose address registries (RFC 6890), RFC 6052 and RFC 8215 (NAT64),
RFC 3056 (6to4), RFC 4380 (Teredo), RFC 4291 (IPv4-mapped and -compatible), and the cloud providers'
metadata endpoints.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Never reached, whatever a rule says: link-local (with its metadata services), metadata services
# elsewhere (Amazon over IPv6, Alibaba, Oracle, Azure), "this network", multicast, reserved.
_NEVER: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "192.0.0.0/24", "168.63.129.16/32",
        "224.0.0.0/4", "240.0.0.0/4",
        "::/128", "fe80::/10", "fec0::/10", "fd00:ec2::/32", "fd20:ce::/32", "ff00::/8",
    )
)  # fmt: skip
# IPv6 forms that carry an IPv4 address and that no target needs: mapped, translated, 6to4, Teredo.
_DISGUISES: tuple[IPv6Network, ...] = tuple(
    IPv6Network(text) for text in ("::ffff:0:0/96", "::ffff:0:0:0/96", "2002::/16", "2001::/32")
)
_COMPATIBLE = IPv6Network("::/96")
_LOOPBACK_V6 = IPv6Address("::1")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")

_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)")


def parse_address(text: str) -> Address | None:
    """Returns the canonical address in `text`, or None for a name."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def is_ambiguous_number(host: str) -> bool:
    """Whether a resolver may read `host` as an address in decimal, octal, hex or short form.

    The URL standard's rule: a host whose last label is a number is an IPv4 address or invalid.
    """
    last = host.rstrip(".").rpartition(".")[2]
    return parse_address(host) is None and _NUMERIC_LABEL.fullmatch(last) is not None


def is_never(address: Address) -> bool:
    """Whether no rule may open this address: metadata, link-local, multicast, reserved, …"""
    if isinstance(address, IPv6Address):
        if _is_disguise(address):
            return True
        carried = _translated(address)
        if carried is not None and not is_public(carried):
            return True
    return any(address in network for network in _NEVER if network.version == address.version)


def is_public(address: Address) -> bool:
    """Whether the address is globally routable, so that no CIDR rule is needed."""
    if isinstance(address, IPv6Address) and (
        _translated(address) is not None or address in _NAT64_LOCAL
    ):
        return False
    return address.is_global and not is_never(address)


def _is_disguise(address: IPv6Address) -> bool:
    if address.scope_id is not None or any(address in network for network in _DISGUISES):
        return True
    return address in _COMPATIBLE and address != _LOOPBACK_V6


def _translated(address: IPv6Address) -> IPv4Address | None:
    """Returns the IPv4 address behind one of the two registered NAT64 prefixes."""
    if address in _NAT64 or address in _NAT64_LOCAL:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
