"""Checks the `Host` and `Origin` headers of requests.

A web page can make a browser send requests to servers on this machine, and its site's name may
resolve to this machine for that purpose (DNS rebinding). Therefore only this machine's names and
the name that the server was started with are accepted. IP addresses cannot be rebound.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

_ANY = ("", "0.0.0.0", "::")


@dataclass(frozen=True)
class AllowedHosts:
    """The names that `Host` and `Origin` headers may contain.

    Attributes:
        hosts: Names without port, in lower case.
    """

    hosts: frozenset[str]

    def takes_host(self, header: str) -> bool:
        """Returns whether a `Host` header contains an allowed name or an IP address."""
        host = _host_of(f"//{header}")
        return host in self.hosts or _is_ip_address(host)

    def takes_origin(self, header: str) -> bool:
        """Returns whether an `Origin` header contains an allowed name."""
        return _host_of(header) in self.hosts


def allowed_hosts(host: str) -> AllowedHosts:
    """Returns the allowed names of a server that was started with `--host`."""
    own = {host.casefold()} - set(_ANY)
    return AllowedHosts(frozenset({"localhost", "127.0.0.1", "::1"} | own))


def _host_of(address: str) -> str:
    try:
        return urlsplit(address.strip()).hostname or ""
    except ValueError:
        return ""


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
