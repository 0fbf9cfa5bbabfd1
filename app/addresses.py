"""Where a webhook may go: to public addresses, over http or https, in a notation that everybody reads the same way.

`check_url` judges what is written, when a job is submitted; names are judged by what they resolve to, when the webhook is sent (`app.courier`).
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from app.config import settings
from app.errors import WebhookNotAllowed

MAX_URL = 2048
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a name whose last label is one of these is read as an IPv4 address (WHATWG URL, inet_aton)

_UNICAST6, _NAT64 = ip_network("2000::/3"), ip_network("64:ff9b::/96")
_SPECIAL = [
    ip_network(n)
    for n in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
        *("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # protocols (Teredo among them), documentation, 6to4, documentation
    )
]
"""IANA's special-purpose registries: what is not a host on the public internet, or leads on to another address."""


def public(address: str) -> bool:
    """Whether an IP address is one of the public internet. IPv4 inside IPv6 (mapped, NAT64) is judged as the IPv4 address that it is."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return False
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _UNICAST6:
            return False
    return not any(ip in network for network in _SPECIAL if network.version == ip.version)


def check_url(url: str, pointer: str = "/webhook/url") -> str:
    """The host of a URL that a webhook may be sent to, in lower case.

    Raises:
        WebhookNotAllowed: another scheme, user info, a fragment, a port that is not 80, 443 or 1024 and above, a host in an odd notation, or an
            address that is not public (unless the setting `webhook_allow_private` is on).
    """

    def refuse(why: str):
        raise WebhookNotAllowed(f"{ascii(url[:200])} {why}", pointer=pointer)

    if len(url) > MAX_URL:
        refuse(f"has {len(url)} characters; at most {MAX_URL} are taken")
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        refuse("has characters that do not belong into a URL; percent-encode them, and write international names as xn--")
    scheme, rest = re.fullmatch(r"(?:([A-Za-z]+)://)?(.*)", url).groups()
    if scheme is None or scheme.lower() not in ("http", "https"):
        refuse("is neither http:// nor https://")
    if "#" in rest:
        refuse("has a fragment; leave out what follows #")
    netloc = re.split(r"[/?]", rest, maxsplit=1)[0]
    if "@" in netloc:
        refuse("carries user info; put a token into the path instead, webhooks are signed")
    parts = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?", netloc)
    if parts is None:
        refuse("has no host, or a port that is none")
    host, port = parts[1].lower(), int(parts[2] or 443)
    if not (port in (80, 443) or 1024 <= port < 65536):
        refuse(f"names port {port}; choose 80, 443, or one from 1024 to 65535")
    if not _allowed(host):
        refuse("names a host that is not public, or names it in an odd way; choose a public name, or an address as 192.0.2.1 or [2001:db8::1] are written")
    return host


def _allowed(host: str) -> bool:
    """Whether a host is well written, and, where it is an address or is known to mean one, public."""
    try:
        address = str(IPv6Address(host[1:-1]) if host[0] == "[" else IPv4Address(host))
    except ValueError:
        labels = host.removesuffix(".").split(".")
        named = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels) and not _NUMBER.fullmatch(labels[-1])
        return named and (labels[-1] != "localhost" or settings().webhook_allow_private)
    return settings().webhook_allow_private or public(address)
