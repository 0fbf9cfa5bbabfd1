"""Requests to servers that are hostile, or not there, all of them real."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from receiver import receiving

from app.config import settings
from app.courier import Answer, Courier, NotPublic, Undelivered, resolve


@pytest.fixture(autouse=True)
def private(monkeypatch):
    """The receivers are on loopback; proxies of the environment lead nowhere and must not be used."""
    monkeypatch.setenv("MODELPRESS_WEBHOOK_ALLOW_PRIVATE", "true")
    monkeypatch.setenv("MODELPRESS_WEBHOOK_TIMEOUT", "1")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    settings.cache_clear()
    yield monkeypatch
    settings.cache_clear()


@pytest.fixture
def receiver():
    with receiving() as r:
        yield r


def post(url: str, resolver=resolve) -> Answer:
    async def once():
        async with Courier(resolver) as courier:
            return await courier.post(url, {"X-Mine": "1"}, b"{}")

    return asyncio.run(once())


def test_a_post_and_its_answer(receiver):
    assert post(receiver.url("/a?b=c")) == Answer(200, None)
    (got,) = receiver.got
    assert (got.path, got.body, got.headers["X-Mine"], got.headers["Host"]) == ("/a?b=c", b"{}", "1", f"127.0.0.1:{receiver.port}")
    assert post(receiver.url("/503/7")) == Answer(503, "7")


def test_redirects_are_not_followed(receiver):
    assert post(receiver.url("/302")).status == 302
    assert [g.path for g in receiver.got] == ["/302"]


@pytest.mark.parametrize("path", ["/slow", "/drip"])
def test_a_server_that_takes_its_time_has_one_deadline_for_all_of_it(receiver, path):
    with pytest.raises(Undelivered, match="no answer within 1 s"):
        post(receiver.url(path))


def test_an_endless_answer_is_not_read(receiver):
    assert post(receiver.url("/flood")).status == 200


@pytest.mark.parametrize("path", ["/nonsense", "/bomb"])
def test_an_answer_that_is_not_one(receiver, path):
    with pytest.raises(Undelivered, match="not HTTP"):
        post(receiver.url(path))


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    with pytest.raises(Undelivered, match="no connection"):
        post(f"http://127.0.0.1:{port}/")

    def unknown(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "no")

    with pytest.raises(Undelivered, match="not known"):
        post("http://nowhere.example/", unknown)


def test_a_lookup_that_hangs_holds_up_nothing(receiver):
    async def both():
        def hanging(host, port):
            if host == "hangs.example":
                time.sleep(2)
            return ["127.0.0.1"]

        async with Courier(hanging) as courier:
            slow = [asyncio.create_task(courier.post(receiver.url("/", "hangs.example"), {}, b"")) for _ in range(40)]
            await asyncio.sleep(0.05)
            fast = await courier.post(receiver.url("/", "fast.example"), {}, b"")
            return fast, await asyncio.gather(*slow, return_exceptions=True)

    fast, slow = asyncio.run(both())
    assert fast.status == 200 and all(isinstance(e, Undelivered) for e in slow) and len(receiver.got) == 1


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "::ffff:10.0.0.1"], ["169.254.169.254"], ["::1"]])
def test_one_private_address_is_enough_to_refuse_a_name(private, receiver, addresses):
    private.setenv("MODELPRESS_WEBHOOK_ALLOW_PRIVATE", "false")
    settings.cache_clear()
    with pytest.raises(NotPublic) as e:
        post(receiver.url("/", "rebind.example"), lambda host, port: addresses)
    assert receiver.got == [] and not any(a in str(e.value) for a in addresses)  # nor is anyone told what a name means inside


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "2130706433", "0x7f.1", "127.1"])
def test_the_setting_off_nothing_on_this_machine_is_reached(private, receiver, host):
    private.setenv("MODELPRESS_WEBHOOK_ALLOW_PRIVATE", "false")
    settings.cache_clear()
    with pytest.raises((NotPublic, Undelivered)):
        post(receiver.url("/", host))
    assert receiver.got == []


def test_the_name_is_asked_once_and_what_it_meant_then_is_connected_to(receiver):
    answers = iter([["127.0.0.1"]])
    assert post(receiver.url("/", "rebind.example"), lambda host, port: next(answers)).status == 200
    assert receiver.got[0].headers["Host"] == f"rebind.example:{receiver.port}"


def test_another_address_of_the_name_is_tried(receiver):
    assert post(receiver.url("/", "two.example"), lambda host, port: ["127.0.0.2", "127.0.0.1"]).status == 200


def certificate(folder, name: x509.GeneralName):
    """A self-signed certificate and its key; the file serves as the authority too."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
    built = built.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    built = built.add_extension(x509.SubjectAlternativeName([name]), False).add_extension(x509.BasicConstraints(True, None), True)
    path = folder / "tls.pem"
    pkcs8 = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pkcs8 + built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize(
    "name, fits", [(x509.DNSName("hooks.example"), True), (x509.DNSName("other.example"), False), (x509.IPAddress(ipaddress.ip_address("127.0.0.1")), False)]
)
def test_tls_keeps_the_name_though_the_address_is_connected_to(private, tmp_path, name, fits):
    path, asked = certificate(tmp_path, name), []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.sni_callback = lambda socket, server_name, context: asked.append(server_name)
    private.setenv("SSL_CERT_FILE", str(path))
    with receiving(lambda s: context.wrap_socket(s, server_side=True)) as receiver:
        url = receiver.url("/", "hooks.example").replace("http:", "https:")
        if fits:
            assert post(url, lambda host, port: ["127.0.0.1"]).status == 200
        else:
            with pytest.raises(Undelivered, match="(?i)certificate"):
                post(url, lambda host, port: ["127.0.0.1"])
            assert receiver.got == []
    assert asked == ["hooks.example"]


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path, x509.DNSName("hooks.example")))
    with receiving(lambda s: context.wrap_socket(s, server_side=True)) as receiver:
        with pytest.raises(Undelivered, match="(?i)certificate"):
            post(receiver.url("/", "hooks.example").replace("http:", "https:"), lambda host, port: ["127.0.0.1"])
        assert receiver.got == []
