"""Which host names and addresses mean this machine alone. Pure."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether `host` (without port and brackets) is `localhost`, in 127.0.0.0/8 or `::1`; other
    names are not resolved.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
