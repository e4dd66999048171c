"""Under which names a server answers.

A page in a browser can have it ask any server of this machine. Its own site's name may lead here
for that (DNS rebinding): so names are refused that are neither this machine's nor the one that the
server was started with. A number cannot be rebound.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

_ANY = ("", "0.0.0.0", "::")


@dataclass(frozen=True)
class AllowedHosts:
    """What `Host` and `Origin` may name.

    Attributes:
        hosts: Names without port, in lower case.
    """

    hosts: frozenset[str]

    def takes_host(self, header: str) -> bool:
        """Returns whether a `Host` header names this server, or is a number."""
        host = _host_of(f"//{header}")
        return host in self.hosts or _is_number(host)

    def takes_origin(self, header: str) -> bool:
        """Returns whether an `Origin` header is of a page that this machine serves."""
        return _host_of(header) in self.hosts


def allowed_hosts(host: str) -> AllowedHosts:
    """Returns the names of a server that was started with `--host`."""
    own = {host.casefold()} - set(_ANY)
    return AllowedHosts(frozenset({"localhost", "127.0.0.1", "::1"} | own))


def _host_of(address: str) -> str:
    try:
        return urlsplit(address.strip()).hostname or ""
    except ValueError:
        return ""


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
