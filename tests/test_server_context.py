"""The TLS context for a server: what it agrees on, whom it asks, and what it says of files it cannot use."""

from __future__ import annotations

import contextlib
import ssl
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from goim_core import ConfigurationError, server_context
from tests.tls import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a connection; raises ssl.SSLError for the first that gives up."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        ends[0].read()  # what TLS 1.3 still has to say of the client's certificate
    return ends[1], ends[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_is_agreed_on(authority: Authority, version: ssl.TLSVersion) -> None:
    client = authority.client()
    client.minimum_version = client.maximum_version = version
    server, _ = shake_hands(server_context(authority.issue()), client)
    assert server.version() == version.name.replace("v1_", "v1.")
    assert server.compression() is None
    cipher = server.cipher()
    assert cipher is not None
    assert cipher[0].startswith(("TLS_", "ECDHE-"))


def test_older_versions_are_refused(authority: Authority) -> None:
    client = authority.client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match="(?i)version|protocol"):
        shake_hands(server_context(authority.issue()), client)


def test_ciphers_without_forward_secrecy_are_refused(authority: Authority) -> None:
    context = server_context(authority.issue())
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert names
    assert all(name.startswith(("TLS_", "ECDHE-")) for name in names)
    assert all("GCM" in name or "CHACHA20" in name for name in names)
    client = authority.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA")
    with pytest.raises(ssl.SSLError, match="(?i)cipher"):
        shake_hands(context, client)


def test_what_else_is_off(authority: Authority) -> None:
    context = server_context(authority.issue())
    off = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    assert context.options & off == off
    assert context.num_tickets == 1
    assert context.verify_mode is ssl.CERT_NONE


def test_a_client_certificate_is_asked_for(authority: Authority, tmp_path: Path) -> None:
    context = server_context(authority.issue(), client_ca=authority.file)
    server, _ = shake_hands(context, authority.client(authority.issue("me@example.org", "me")))
    assert server.getpeercert()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    expired = tmp_path / "expired.pem"
    issued = authority.issue_cert("me@example.org", not_after=yesterday)
    issued.private_key_and_cert_chain_pem.write_to_path(expired)
    for stranger in (None, expired, Authority(tmp_path).issue("me@example.org", "me")):
        with pytest.raises(ssl.SSLError):
            shake_hands(context, authority.client(stranger))


def test_the_key_in_a_file_of_its_own(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for number, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(tmp_path / "chain.pem", append=number > 0)
    context = server_context(str(tmp_path / "chain.pem"), tmp_path / "key.pem")
    assert shake_hands(context, authority.client())[0].version() == "TLSv1.3"


@pytest.fixture
def files(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with something else in them than they should have, in the current directory."""
    monkeypatch.chdir(tmp_path)
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path("both.pem")
    issued.cert_chain_pems[0].write_to_path("chain.pem")
    authority.issue_cert("localhost").private_key_pem.write_to_path("other.pem")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"hidden")
    pem = serialization.Encoding.PEM
    Path("sealed.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, sealed))
    Path("junk.pem").write_text("hidden")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("certificate", "private_key", "client_ca", "message"),
    [
        ("no.pem", None, None, "certificate: cannot read 'no.pem': No such file or directory"),
        (".", None, None, "certificate: cannot read '.': Is a directory"),
        ("chain.pem", "no.pem", None, "private_key: cannot read 'no.pem': No such file or directory"),
        (
            "chain.pem",
            None,
            None,
            "certificate: cannot use 'chain.pem': not in PEM, or not all of it is there",
        ),
        (
            "junk.pem",
            "other.pem",
            None,
            (
                "certificate, private_key: cannot use 'junk.pem' with 'other.pem': "
                "not in PEM, or not all of it is there"
            ),
        ),
        (
            "chain.pem",
            "other.pem",
            None,
            "certificate, private_key: cannot use 'chain.pem' with 'other.pem': key values mismatch",
        ),
        ("chain.pem", "sealed.pem", None, "private_key: expected a key without a password"),
        ("both.pem", None, "no.pem", "client_ca: cannot read 'no.pem': No such file or directory"),
        ("both.pem", None, "junk.pem", "client_ca: cannot use 'junk.pem': no certificate or crl found"),
    ],
)
def test_files_that_cannot_be_used(
    certificate: str, private_key: str | None, client_ca: str | None, message: str
) -> None:
    with pytest.raises(ConfigurationError) as told:
        server_context(certificate, private_key, client_ca=client_ca)
    assert str(told.value) == message
