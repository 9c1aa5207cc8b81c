"""JWTs: which are let in, which are refused and how, and keys that come and go.

Where a client puts its token is in test_auth.py: SignedTokenAuth shares it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms

from goim_core.adapters.jwt import ASYMMETRIC, LOOK_AGAIN, SYMMETRIC, JWTAuth
from goim_core.errors import CloseCode, ConfigurationError, Disconnect
from goim_core.session import AuthRequest, Session
from goim_core.token_auth import MAX_TOKEN
from tests.test_auth import NOW, SOON, StoodClock, admitted, refusal

SECRET = "a shared secret that is long enough for HS512: sixty-four bytes or more"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {
    **dict.fromkeys(SYMMETRIC, SECRET),
    **{name: RSA for name in ASYMMETRIC if name[:2] in ("RS", "PS")},
    "ES256": P256,
    "ES256K": ec.generate_private_key(ec.SECP256K1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ED25519,
}


def pem(private: Any) -> bytes:
    """The public key of ``private``."""
    found: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


def public(algorithm: str) -> str | bytes:
    private = PRIVATE[algorithm]
    return private if isinstance(private, str) else pem(private)


def on_clock(auth: JWTAuth) -> JWTAuth:
    auth.server = SimpleNamespace(clock=StoodClock())  # type: ignore[assignment]
    return auth


def hook(key: Any = SECRET, algorithms: Any = "HS256", **given: Any) -> JWTAuth:
    return on_clock(JWTAuth(key, algorithms=algorithms, **given))


def token(algorithm: str = "HS256", signer: Any = None, header: Any = None, **claims: Any) -> str:
    claims = {name: value for name, value in {"sub": "7", "exp": SOON, **claims}.items() if value is not ...}
    return jwt.encode(claims, PRIVATE[algorithm] if signer is None else signer, algorithm, headers=header)


def base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def by_hand(header: bytes, claims: bytes, secret: bytes = SECRET.encode()) -> bytes:
    """A token with any header and claims, signed with HMAC-SHA256 whatever the header says."""
    signed = base64url(header) + b"." + base64url(claims)
    return signed + b"." + base64url(hmac.new(secret, signed, hashlib.sha256).digest())


HS256 = b'{"alg":"HS256"}'
CLAIMS = b'{"sub":"7","exp":1e10}'

# What is let in.


@pytest.mark.parametrize("algorithm", [*SYMMETRIC, *ASYMMETRIC])
def test_every_algorithm(algorithm: str) -> None:
    auth = hook(public(algorithm), [algorithm])
    session = admitted(token(algorithm), auth)
    assert (session.mid, session.expires) == (7, SOON)
    head, _, signature = token(algorithm).rpartition(".")
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    assert refusal(f"{head}.{flipped}", auth) == "token: the signature does not fit"


@pytest.mark.parametrize("sub", ["0", "-1", "9223372036854775807", "-9223372036854775808"])
def test_the_user_in_decimal_or_as_a_number(sub: str) -> None:
    assert admitted(token(sub=sub), hook()).mid == int(sub)
    assert admitted(by_hand(HS256, b'{"exp":1e10,"sub":' + sub.encode() + b"}"), hook()).mid == int(sub)


def test_claims_become_the_session() -> None:
    names = {"key": "k", "room_id": "live://1", "platform": "web", "device": "phone"}
    session = admitted(token(**names, accepts=[1000], role="admin"), hook())
    assert {name: getattr(session, name) for name in names} == names
    assert session.accepts == {1000}
    assert session.data == {"sub": "7", "exp": SOON, **names, "accepts": [1000], "role": "admin"}


def test_claims_of_other_names() -> None:
    claims = {"room_id": "https://example.org/room", "device": "", "data": "role"}
    given = {
        "https://example.org/room": "live://1",
        "room_id": "live://2",
        "device": 5,
        "role": "admin",
        "": 1,
    }
    session = admitted({"token": token(**given), "device": "d"}, hook(claims=claims))
    assert (session.room_id, session.device, session.data) == ("live://1", "d", "admin")
    assert admitted(token(), hook(claims={"data": ""})).data is None


def test_another_claim_for_the_user() -> None:
    assert admitted(token(uid=8, sub="auth|x"), hook(mid_claim="uid")).mid == 8


def test_a_claim_that_is_null_is_left_to_the_client() -> None:
    session = admitted({"token": token(platform=None, key=None), "platform": "web", "key": "k"}, hook())
    assert (session.platform, session.key) == ("web", "")


def test_bearer_and_cookie() -> None:
    auth = hook(cookie="session", origins="https://example.org")
    assert admitted(b"", auth, authorization=f"Bearer {token()}").mid == 7
    assert admitted(b"", auth, cookie=f"session={token()}", origin="https://example.org").mid == 7
    assert refusal(b"", auth, cookie=f"session={token()}", origin="https://evil.example").startswith(
        "origin: "
    )


# Times.


def test_a_token_runs_out_and_begins() -> None:
    auth = hook(leeway=10)
    clock: Any = auth.server.clock
    made = token(nbf=NOW)
    for at in (NOW - 10, NOW, SOON, SOON + 9):
        clock.at = at
        assert admitted(made, auth).expires == SOON + 10
    clock.at = SOON + 10
    assert refusal(made, auth) == f"{CloseCode.EXPIRED} token: expired"
    clock.at = NOW - 11
    assert refusal(made, auth) == "nbf: the token is not valid yet"


def test_a_token_without_an_end() -> None:
    assert refusal(token(exp=...), hook()) == "exp: missing from the token"
    assert admitted(token(exp=...), hook(require=[])).expires == float("inf")
    assert refusal(token(exp=NOW), hook(require=[])) == f"{CloseCode.EXPIRED} token: expired"


# What is refused.

PARTS = "token: expected a JWT in three parts"
FORGED = "token: the signature does not fit"
ALGORITHM = "alg: not allowed here"
USER = "sub: expected a user id, an int64"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"sesame", PARTS),
        (b"a.b", PARTS),
        (b"..", PARTS),
        (b".".join([b"e30"] * 3), ALGORITHM),
        (b".".join([b"e30"] * 5), PARTS),
        (by_hand(HS256, CLAIMS).rpartition(b".")[0], PARTS),
        (by_hand(HS256, CLAIMS).rpartition(b".")[0] + b".", FORGED),
        (by_hand(HS256, CLAIMS) + b"!", PARTS),
        (by_hand(HS256, CLAIMS, b"another"), FORGED),
        (by_hand(b"[]", CLAIMS), PARTS),
        (by_hand(b"\xff", CLAIMS), PARTS),
        (by_hand(b"[" * 3000, CLAIMS), PARTS),
        (by_hand(b'{"alg":["HS256"]}', CLAIMS), ALGORITHM),
        (by_hand(b'{"alg":null}', CLAIMS), ALGORITHM),
        (by_hand(b'{"alg":"none"}', CLAIMS), ALGORITHM),
        (by_hand(b'{"alg":"None"}', CLAIMS), ALGORITHM),
        (by_hand(b'{"alg":"none"}', CLAIMS).rpartition(b".")[0] + b".", ALGORITHM),
        (by_hand(b'{"alg":"hs256"}', CLAIMS), ALGORITHM),
        (by_hand(b'{"alg":"HS512"}', CLAIMS), ALGORITHM),
        (by_hand(b'{"alg":"RS256"}', CLAIMS), ALGORITHM),
        (by_hand(b'{"alg":"none","alg":"HS256"}', CLAIMS, b"none"), FORGED),
        (by_hand(b'{"alg":"HS256","kid":5}', CLAIMS), PARTS),
        (by_hand(HS256, b"[]"), PARTS),
        (by_hand(HS256, b"\xff"), PARTS),
        (by_hand(HS256, b"[" * 3000), PARTS),
        (by_hand(HS256, b'{"sub":1' + b"1" * 5000 + b',"exp":1e10}'), PARTS),
        (by_hand(HS256, b'{"sub":1' + b"1" * 30 + b',"exp":1e10}'), USER),
        (by_hand(HS256, b'{"exp":1e10}'), "sub: missing from the token"),
        (by_hand(HS256, b'{"sub":null,"exp":1e10}'), USER),
        (by_hand(HS256, b'{"sub":true,"exp":1e10}'), USER),
        (by_hand(HS256, b'{"sub":7.0,"exp":1e10}'), USER),
        (by_hand(HS256, b'{"sub":"","exp":1e10}'), USER),
        (by_hand(HS256, b'{"sub":"07","exp":1e10}'), USER),
        (by_hand(HS256, b'{"sub":"7\\n","exp":1e10}'), USER),
        (by_hand(HS256, b'{"sub":"9223372036854775808","exp":1e10}'), USER),
        (by_hand(HS256, '{"sub":"\u0667","exp":1e10}'.encode()), USER),
        (by_hand(HS256, b'{"sub":"auth0|5f7","exp":1e10}'), USER),
        (by_hand(HS256, b'{"sub":"7","exp":null}'), "exp: missing from the token"),
        (by_hand(HS256, b'{"sub":"7","exp":"1e10"}'), "exp: expected seconds since 1970"),
        (by_hand(HS256, b'{"sub":"7","exp":Infinity}'), "exp: expected seconds since 1970"),
        (by_hand(HS256, b'{"sub":"7","exp":1' + b"0" * 400 + b"}"), "exp: expected seconds since 1970"),
        (by_hand(HS256, b'{"sub":"7","exp":1e10,"nbf":"x"}'), "nbf: expected seconds since 1970"),
        (by_hand(HS256, b'{"sub":"7","exp":1e10,"key":5}'), "key: expected text, got 5"),
        (by_hand(HS256, b'{"sub":"7","exp":1e10,"aud":"x"}'), "aud: the token is not for this server"),
        (by_hand(HS256, b"x" * MAX_TOKEN), f"token: expected at most {MAX_TOKEN} characters of ASCII"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(body: bytes, reason: str) -> None:
    assert refusal(body, hook()) == reason


@pytest.mark.parametrize(
    ("extension", "claims"), [(b'"crit":["exp"],"exp":1', CLAIMS), (b'"crit":["b64"],"b64":false', b"")]
)
def test_an_extension_that_has_to_be_understood(extension: bytes, claims: bytes) -> None:
    # PyJWT knows of crit, though not in all its versions.
    header = b'{"alg":"HS256",' + extension + b"}"
    assert refusal(by_hand(header, claims), hook()) in ("crit: not supported", PARTS)


def test_the_last_of_a_claim_that_is_given_twice_counts() -> None:
    # RFC 7519 section 4: refuse it, or take the last one.
    assert admitted(by_hand(HS256, b'{"sub":"1","sub":"7","exp":1e10}'), hook()).mid == 7


def test_a_key_of_another() -> None:
    auth = hook(pem(RSA), ["RS256", "PS256"])
    assert refusal(token("RS256", OTHER_RSA), auth) == FORGED
    assert admitted(token("PS256"), auth).mid == 7


@pytest.mark.parametrize("form", [serialization.Encoding.PEM, serialization.Encoding.DER], ids=["PEM", "DER"])
def test_a_public_key_is_no_shared_secret(form: serialization.Encoding) -> None:
    """An attacker has the public key, signs with its bytes as a secret, and says HS256."""
    public_bytes = RSA.public_key().public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo)
    forged = by_hand(HS256, CLAIMS, public_bytes)
    assert refusal(forged, hook(pem(RSA), ["RS256"])) == ALGORITHM
    assert refusal(by_hand(b'{"alg":"RS256"}', CLAIMS, public_bytes), hook(pem(RSA), ["RS256"])) == FORGED
    with pytest.raises(ConfigurationError, match=r"^algorithms: .* not both"):
        hook(pem(RSA), ["RS256", "HS256"])
    with pytest.raises(ConfigurationError, match="^key: no key for HS256: "):
        hook(public_bytes, ["HS256"])


@pytest.mark.parametrize(
    ("audience", "given", "admits"),
    [
        ("chat", "chat", True),
        ("chat", ["web", "chat"], True),
        (["chat", "push"], "push", True),
        ("chat", "web", False),
        ("chat", [], False),
        ("chat", {"chat": 1}, False),
        ("chat", ["chat", 5], False),
        ("chat", ..., False),
        (None, "chat", False),
        (None, ..., True),
    ],
)
def test_the_audience(audience: Any, given: Any, admits: bool) -> None:
    if admits:
        assert admitted(token(aud=given), hook(audience=audience)).mid == 7
    else:
        assert refusal(token(aud=given), hook(audience=audience)).startswith("aud: ")


@pytest.mark.parametrize("issuer", ["https://id.example", ["https://other.example", "https://id.example"]])
def test_the_issuer(issuer: Any) -> None:
    auth = hook(issuer=issuer)
    assert admitted(token(iss="https://id.example"), auth).mid == 7
    assert refusal(token(iss="https://evil.example"), auth) == "iss: not trusted here"
    # A part of the name is not the name.
    assert refusal(token(iss="https://id"), auth) == "iss: not trusted here"
    assert refusal(token(), auth) == "iss: missing from the token"
    assert refusal(by_hand(HS256, b'{"sub":"7","exp":1e10,"iss":["https://id.example"]}'), auth) == (
        "iss: not trusted here"
    )


@given(st.data())
@settings(deadline=None)
@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
def test_a_token_with_one_bit_flipped_is_refused(algorithm: str, data: st.DataObject) -> None:
    made = bytearray(token(algorithm).encode())
    bit = data.draw(st.integers(0, len(made) * 8 - 1))
    made[bit // 8] ^= 1 << bit % 8
    assert refusal(bytes(made), hook(public(algorithm), algorithm))


@given(st.integers(0, 1000))
def test_a_token_that_is_cut_off_is_refused(size: int) -> None:
    made = token().encode()
    assert refusal(made[: size % len(made)], hook())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)
HEADERS = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip"]), JSON)
CLAIM_SETS = st.dictionaries(
    st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "iss", "jti", "accepts", "key"]), JSON
)


def let_in_or_refused(body: bytes, auth: JWTAuth) -> None:
    try:
        assert isinstance(auth.authenticate(AuthRequest(token=body)), Session)
    except Disconnect as error:
        assert error.code in (CloseCode.AUTH_REFUSED, CloseCode.EXPIRED)
        assert error.reason


@given(st.binary() | st.lists(st.binary().map(base64url), min_size=3, max_size=3).map(b".".join))
def test_any_bytes_are_let_in_or_refused(body: bytes) -> None:
    let_in_or_refused(body, hook())


@given(
    HEADERS | st.just({"alg": "HS256"}),
    CLAIM_SETS | JSON,
    st.sampled_from(["HS256", "RS256", "ES256", "EdDSA"]),
)
def test_any_header_and_claims_are_let_in_or_refused(header: Any, claims: Any, algorithm: str) -> None:
    body = by_hand(json.dumps(header).encode(), json.dumps(claims).encode())
    let_in_or_refused(body, hook(public(algorithm), algorithm, audience="a", issuer="i"))


@given(st.binary(max_size=80))
def test_any_signature_is_refused(signature: bytes) -> None:
    for algorithm in ("HS256", "RS256", "ES256", "EdDSA"):
        signed = token(algorithm).rpartition(".")[0].encode()
        assert refusal(signed + b"." + base64url(signature), hook(public(algorithm), algorithm)) == FORGED


# Settings.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithms": []}, "algorithms: expected one or several texts, got []"),
        ({"algorithms": 5}, "algorithms: expected one or several texts, got 5"),
        ({"algorithms": ["none"]}, "algorithms: expected of HS256, "),
        ({"algorithms": ["HS256", "none"]}, "algorithms: expected of HS256, "),
        ({"algorithms": ["HS256", "ES256"]}, "algorithms: expected those of a shared secret or of a public key, not"),
        ({"key": None}, "key: expected either key or jwks"),
        ({"jwks": "keys.json"}, "key: expected either key or jwks"),
        ({"key": ""}, "key: expected text or bytes, got str"),
        ({"key": 5}, "key: expected text or bytes, got int"),
        ({"key": "x" * 31}, "key: no key for HS256: expected at least 32 bytes, got 31"),
        ({"key": SECRET[:63], "algorithms": "HS512"}, "key: no key for HS512: expected at least 64 bytes, got 63"),
        ({"algorithms": "RS256"}, "key: no key for RS256: "),
        ({"key": pem(RSA), "algorithms": ["RS256", "ES256"]}, "key: no key for ES256: "),
        ({"key": pem(P256), "algorithms": "RS256"}, "key: no key for RS256: "),
        ({"key": pem(ED25519), "algorithms": "ES256"}, "key: no key for ES256: "),
        ({"leeway": -1}, "leeway: expected seconds, 0 to 86400, got -1"),
        ({"leeway": "1"}, "leeway: expected seconds, 0 to 86400, got '1'"),
        ({"mid_claim": ""}, "mid_claim: expected a claim's name, got ''"),
        ({"audience": ()}, "audience: expected one or several texts, got ()"),
        ({"issuer": [5]}, "issuer: expected one or several texts, got [5]"),
        ({"require": 5}, "require: expected one or several texts, got 5"),
        ({"claims": "x"}, "claims: expected names of claims, got 'x'"),
        ({"claims": {"mid": "x"}}, "claims: expected names of claims for room_id, platform, device, accepts, key, data;"),
        ({"claims": {"key": 5}}, "claims: expected names of claims for "),
        ({"cookie": "a b"}, "cookie: expected a cookie's name"),
    ],
)  # fmt: skip
def test_settings_that_are_none(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        JWTAuth(**{"key": SECRET, "algorithms": "HS256", **given})
    assert str(refused.value).startswith(message)
    assert SECRET not in str(refused.value)


def test_a_private_key_does_not_belong_here() -> None:
    private = RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(
        ConfigurationError, match="^key: no key for RS256: expected the public key, got the private"
    ):
        hook(private, "RS256")


def test_an_rsa_key_that_is_too_small() -> None:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(ConfigurationError, match="expected an RSA key of at least 2048 bits, got 1024$"):
        hook(pem(small), "PS256")


def test_without_pyjwt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    monkeypatch.delitem(sys.modules, "goim_core.adapters.jwt")
    with pytest.raises(
        ImportError, match=r"^goim_core\.adapters\.jwt needs PyJWT: pip install 'goim_core\[jwt\]'$"
    ):
        importlib.import_module("goim_core.adapters.jwt")


def test_without_cryptography_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: found for name, found in get_default_algorithms().items() if name in SYMMETRIC}
    monkeypatch.setattr("goim_core.adapters.jwt.get_default_algorithms", lambda: some)
    with pytest.raises(ConfigurationError, match=r"^algorithms: RS256 needs cryptography: pip install"):
        hook(pem(RSA), "RS256")


# A set of keys in a file.


def jwk(private: Any, algorithm: str, **fields: Any) -> dict[str, Any]:
    key = private if isinstance(private, str | bytes) else private.public_key()
    found: Any = get_default_algorithms()[algorithm].to_jwk(key, as_dict=True)  # type: ignore[call-overload]
    return {**found, **fields}


class KeyFile:
    """A JWKS file, whose time of change goes on by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changes = 0

    def write(self, *keys: Any) -> None:
        self.write_text(json.dumps({"keys": keys}))

    def write_text(self, text: str) -> None:
        self.path.write_text(text)
        self._changes += 1
        os.utime(self.path, ns=(self._changes, self._changes))


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def key_set(file: KeyFile, *algorithms: str) -> JWTAuth:
    return on_clock(JWTAuth(jwks=file.path, algorithms=algorithms or ("RS256", "PS256", "ES256")))


def with_kid(kid: str, algorithm: str = "RS256", key: Any = None) -> str:
    return token(algorithm, key, {"kid": kid})


UNKNOWN = "kid: no such key here for the token's algorithm"
AMBIGUOUS = "kid: missing from the token, or several keys have it"


def test_the_key_of_the_kid(file: KeyFile) -> None:
    file.write(
        jwk(RSA, "RS256", kid="r", use="sig"), jwk(OTHER_RSA, "RS256", kid="o"), jwk(P256, "ES256", kid="e")
    )
    auth = key_set(file)
    for algorithm in ("RS256", "PS256"):
        assert admitted(with_kid("r", algorithm), auth).mid == 7
    assert admitted(with_kid("o", "RS256", OTHER_RSA), auth).mid == 7
    assert admitted(with_kid("e", "ES256"), auth).mid == 7
    assert refusal(with_kid("o"), auth) == FORGED
    assert refusal(with_kid("e"), auth) == UNKNOWN  # an RSA algorithm with the kid of an elliptic curve
    assert refusal(with_kid("x"), auth) == UNKNOWN
    assert refusal(with_kid("e", "ES384"), auth) == ALGORITHM


def test_a_token_without_a_kid_where_there_is_one_key(file: KeyFile) -> None:
    file.write(jwk(RSA, "RS256"), jwk(P256, "ES256", kid="e"))
    assert admitted(token("RS256"), key_set(file)).mid == 7
    assert admitted(token("ES256"), key_set(file)).mid == 7
    file.write(jwk(RSA, "RS256", kid="r"), jwk(OTHER_RSA, "RS256", kid="o"))
    assert refusal(token("RS256"), key_set(file)) == AMBIGUOUS
    file.write(jwk(RSA, "RS256", kid="r"), jwk(OTHER_RSA, "RS256", kid="r"))
    assert refusal(with_kid("r"), key_set(file)) == AMBIGUOUS


def test_a_key_is_for_its_own_algorithm_and_use(file: KeyFile) -> None:
    file.write(
        jwk(RSA, "RS256", kid="a", alg="PS256"),
        jwk(RSA, "RS256", kid="b", use="enc"),
        jwk(RSA, "RS256", kid="c", key_ops=["encrypt"]),
        jwk(RSA, "RS256", kid="d", key_ops="verify"),
        jwk(SECRET, "HS256", kid="e"),
        jwk(PRIVATE["ES384"], "ES384", kid="f"),
        {"kty": "RSA", "kid": "g"},
        {"kty": "RSA", "kid": "h", "n": 5, "e": None},
        {"kty": "new", "kid": "i"},
        {},
        "text",
        None,
    )
    auth = key_set(file)
    assert admitted(with_kid("a", "PS256"), auth).mid == 7
    for kid in "abcdghi":
        assert refusal(with_kid(kid), auth) == UNKNOWN
    assert refusal(token("HS256", header={"kid": "e"}), auth) == ALGORITHM
    assert refusal(with_kid("f", "ES256"), auth) == UNKNOWN


def test_a_set_of_shared_secrets(file: KeyFile) -> None:
    file.write(jwk(SECRET, "HS256", kid="s"), jwk(RSA, "RS256", kid="r"))
    auth = key_set(file, "HS256", "HS512")
    assert admitted(token("HS512", header={"kid": "s"}), auth).mid == 7
    assert refusal(with_kid("r"), auth) == ALGORITHM
    assert refusal(by_hand(b'{"alg":"HS256","kid":"r"}', CLAIMS, pem(RSA)), auth) == UNKNOWN


def test_a_key_comes_and_goes(file: KeyFile) -> None:
    old, new = jwk(RSA, "RS256", kid="old"), jwk(OTHER_RSA, "RS256", kid="new")
    file.write(old)
    auth = key_set(file)
    clock: Any = auth.server.clock
    first, second = with_kid("old"), with_kid("new", key=OTHER_RSA)
    assert admitted(first, auth).mid == 7
    assert refusal(second, auth) == UNKNOWN

    file.write(old, new)
    assert admitted(second, auth).mid == 7, "an unknown kid has the file read at once"
    file.write(new)
    assert admitted(first, auth).mid == 7, "a known one does not"
    clock.at += LOOK_AGAIN
    assert refusal(first, auth) == UNKNOWN
    assert admitted(second, auth).mid == 7
    file.write(old, new)
    clock.at -= 1e6  # set back
    assert admitted(first, auth).mid == 7


def test_a_file_is_read_only_when_it_has_changed(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(jwk(RSA, "RS256", kid="r"))
    auth = key_set(file)
    opened: list[Path] = []
    original = Path.open

    def recorded(path: Path, mode: str = "r", **rest: Any) -> Any:
        if mode == "rb":
            opened.append(path)
        return original(path, mode, **rest)

    monkeypatch.setattr(Path, "open", recorded)
    for _ in range(3):
        auth.server.clock.at += LOOK_AGAIN  # type: ignore[attr-defined]
        assert admitted(with_kid("r"), auth).mid == 7
        assert refusal(with_kid("x"), auth) == UNKNOWN
    assert not opened
    file.write(jwk(RSA, "RS256", kid="x"))
    assert admitted(with_kid("x"), auth).mid == 7
    assert opened == [file.path]


SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)
PRIVATE_JWK = get_default_algorithms()["RS256"].to_jwk(RSA, as_dict=True)
BROKEN = [
    ("", "expected a JSON object with a list 'keys'"),
    ("\udcff", "expected a JSON object with a list 'keys'"),
    ("[]", "expected a JSON object with a list 'keys'"),
    ('{"keys":5}', "expected a JSON object with a list 'keys'"),
    ("[" * 5000, "expected a JSON object with a list 'keys'"),
    ('{"keys":[]}', "no key in it is for RS256, PS256, ES256"),
    ('{"keys":[{"kty":"oct","k":"AAAA"}]}', "no key in it is for RS256, PS256, ES256"),
    (json.dumps({"keys": [{**PRIVATE_JWK, "key_ops": ["verify"]}]}), "expected the public key, got the private one"),
    (json.dumps({"keys": [jwk(SMALL, "RS256")]}), "expected an RSA key of at least 2048 bits, got 1024"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "complaint"), BROKEN)
def test_a_broken_file(text: str, complaint: str, file: KeyFile, caplog: pytest.LogCaptureFixture) -> None:
    file.path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as refused:
        key_set(file)
    assert str(refused.value) == f"jwks: cannot use {str(file.path)!r}: {complaint}"

    # While a server runs, its keys stay as they were.
    file.write(jwk(RSA, "RS256", kid="r"))
    auth = key_set(file)
    file.path.write_bytes(text.encode(errors="surrogateescape"))
    for _ in range(3):
        assert refusal(with_kid("x"), auth) == UNKNOWN
        assert admitted(with_kid("r"), auth).mid == 7
    logged = f"jwks: the keys of {file.path} stay as they were: {complaint}"
    assert caplog.record_tuples == [("goim_core.adapters.jwt", logging.WARNING, logged)]
    file.write(jwk(RSA, "RS256", kid="x"))
    assert admitted(with_kid("x"), auth).mid == 7


def test_a_file_that_is_not_there(file: KeyFile, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError, match=r"^jwks: cannot use '.*': No such file or directory$"):
        key_set(file)
    file.write(jwk(RSA, "RS256", kid="r"))
    auth = key_set(file)
    file.path.unlink()
    for _ in range(3):
        assert refusal(with_kid("x"), auth) == UNKNOWN
    assert admitted(with_kid("r"), auth).mid == 7
    assert len(caplog.records) == 1, "strangers cannot fill the log"
