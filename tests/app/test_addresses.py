"""Where a webhook may go, in every notation that somebody might try."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.addresses import check_url, public
from app.config import settings
from app.errors import WebhookNotAllowed

PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8 192.0.0.170
192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:0 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe
64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 3fff::1 5f00::1 fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
""".split()
PUBLIC = "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1 192.0.1.1 223.255.255.255 2606:4700::1111 2a00:1450:4001::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8".split()

REFUSED = r"""
http://127.0.0.1/ http://127.1/ http://127.0.1/ http://2130706433/ http://0x7f000001/ http://0x7f.1/ http://0X7F.0.0.1/ http://0177.0.0.1/ http://017700000001/
http://127.0.0.1./ http://127.0.0.01/ http://0/ http://0x/ http://0.0.0.0/ http://8.8.8.08/ http://134744072/ http://256.256.256.256/ http://1.2.3.4.5/
http://[::1]/ http://[::]/ http://[::ffff:127.0.0.1]/ http://[0:0:0:0:0:ffff:7f00:1]/ http://[::1%25eth0]/ http://[fe80::1%25lo]/ http://[::127.0.0.1]/
http://[64:ff9b::7f00:1]/ http://[2002:7f00:1::]/ http://[1.2.3.4]/ http://[]/ http://[::1/ http://::1]/ http://[v1.x]/ http://[::1]x/
http://localhost/ http://LOCALHOST/ http://localhost./ http://a.localhost/ http://100.64.0.1/ http://169.254.169.254/latest/
http://good.example@127.0.0.1/ http://good.example:80@127.0.0.1/ http://127.0.0.1#@good.example/ http://127.0.0.1\@good.example/ https://good.example\@127.0.0.1/
http://a:b@good.example/ http://@good.example/ http://good.example/#x http://good.example# http:///x http:// http:good.example https:/good.example //good.example good.example
ftp://good.example/ file:///etc/passwd gopher://good.example/ javascript:alert(1) redis://good.example:6379/ http+unix://x/ unix:/run/docker.sock
http://good.example:22/ http://good.example:0/ http://good.example:1023/ http://good.example:65536/ http://good.example:99999999/ http://good.example:x/
http://good.example:-80/ http://good.example:80:80/ http://good.example:/ http://good.example:+80/
http://good..example/ http://.good.example/ http://good.example../ http://-a.example/ http://a-.example/ http://a%2eb.example/ http://%31%32%37.0.0.1/ http://good.example%00.x/
http://gооd.example/ http://①②⑦.0.0.1/ http://127。0。0。1/ http://１２７.0.0.1/ http://ⓛocalhost/ http://good*.example/ http://a,b.example/ http://$x/
""".split()
REFUSED += ["http://good.example/\r\nX: y", "http://good.example/a b", "http://good.example/\t", "\x00http://good.example/", " http://good.example/", "http://good.example/\n", ""]
REFUSED += ["http://" + "a" * 64 + ".example/", "http://" + "a." * 130 + "example/", "https://good.example/" + "x" * 2048]
TAKEN = {
    "https://good.example/": "good.example",
    "HTTPS://Good.Example:8443/a/b?c=d&e=%20": "good.example",
    "http://good.example.:1024": "good.example.",
    "http://good.example?x=http://127.0.0.1/@": "good.example",
    "https://xn--bcher-kva.example:65535/": "xn--bcher-kva.example",
    "http://8.8.8.8/": "8.8.8.8",
    "http://[2606:4700::1111]:80/x": "[2606:4700::1111]",
    "https://hooks_1.a-b.example/[x]": "hooks_1.a-b.example",
    "https://1.example.com1/": "1.example.com1",
}


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.delenv("MODELPRESS_WEBHOOK_ALLOW_PRIVATE", raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public(address):
    assert not public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public(address):
    assert public(address)


@given(st.ip_addresses(v=4))
def test_ipv4_is_judged_alike_wherever_it_stands(ip):
    """At least as strict as the standard library, and the same inside IPv6."""
    judged = public(str(ip))
    assert not judged or (ip.is_global and not ip.is_multicast)
    assert public(f"::ffff:{ip}") == public(f"64:ff9b::{ip}") == judged
    assert not public(f"::{ip}") and not public(str(ipaddress.IPv6Address(0x2002 << 112 | int(ip) << 80)))


@given(st.ip_addresses(v=6))
def test_ipv6_is_at_least_as_strict_as_the_standard_library(ip):
    assert not public(str(ip)) or (ip.is_global and not ip.is_multicast) or ip.ipv4_mapped or ip in ipaddress.ip_network("64:ff9b::/96")


@pytest.mark.parametrize("url", REFUSED)
def test_refused_as_written(url):
    with pytest.raises(WebhookNotAllowed) as e:
        check_url(url)
    assert (e.value.status, e.value.type, e.value.pointer) == (422, "webhook-not-allowed", "/webhook/url") and e.value.detail.isascii()


@pytest.mark.parametrize("url", TAKEN)
def test_taken_as_written(url):
    assert check_url(url) == TAKEN[url]


@given(st.text("0123456789abcdefxX.", min_size=1, max_size=20))
def test_no_host_that_the_resolver_reads_as_a_private_address_is_taken(host):
    """`inet_aton` reads hex, octal and short forms; whatever it makes of a host that is taken is public."""
    try:
        check_url(f"http://{host}/")
    except WebhookNotAllowed:
        return
    try:
        read = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return
    assert read == host and public(read)


@given(st.text(max_size=60))
def test_any_text_is_judged(text):
    for url in (text, f"http://{text}", f"https://good.example{text}"):
        try:
            host = check_url(url)
        except WebhookNotAllowed:
            continue
        assert host.isascii() and host in url.lower()


def test_an_intranet_may_be_allowed(monkeypatch):
    monkeypatch.setenv("MODELPRESS_WEBHOOK_ALLOW_PRIVATE", "true")
    settings.cache_clear()
    assert [check_url(u) for u in ("http://127.0.0.1:9000/", "http://[::1]/", "http://localhost/")] == ["127.0.0.1", "[::1]", "localhost"]
    for odd in ("http://2130706433/", "http://127.1/", "http://a@localhost/", "http://localhost:22/"):
        with pytest.raises(WebhookNotAllowed):
            check_url(odd)
