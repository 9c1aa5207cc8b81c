"""JSON Web Tokens (RFC 7519), with PyJWT: ``pip install 'goim_core[jwt]'``."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from goim_core.errors import ConfigurationError, Disconnect
from goim_core.token_auth import CHOSEN, TokenAuth, refused, seconds, texts

try:
    import jwt
    from jwt.algorithms import get_default_algorithms
except ImportError as error:
    raise ImportError("goim_core.adapters.jwt needs PyJWT: pip install 'goim_core[jwt]'") from error

__all__ = ["JWTAuth"]

SYMMETRIC = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The algorithms with a shared secret, and its least length in bytes (RFC 7518 section 3.2)."""
ASYMMETRIC = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES256K", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""The algorithms with a public key."""
RSA_BITS = 2048
"""The least size of an RSA key (RFC 7518 section 3.3)."""
LOOK_AGAIN = 5.0
"""How often, in seconds, the JWKS file is looked at."""

_log = logging.getLogger("goim_core.adapters.jwt")


class JWTAuth(TokenAuth):
    """Lets in whoever brings a JWT that is signed with ``key``, or with one of the keys in ``jwks``.

    ``key`` is a public key in PEM, or the shared secret of HS256, HS384 and HS512; ``jwks`` the path of a
    JWK set (RFC 7517). A changed file is read again within some seconds, and at once for a token with an
    unknown ``kid``; while it cannot be read the keys stay. ``algorithms`` are those allowed, all with a
    shared secret or all with a public key: what a token says of itself never chooses another.

    A token has to be for ``audience``, where it or the token names one, and from ``issuer`` where that is
    given (each a text or several). The claims in ``require`` have to be there; ``exp`` and ``nbf`` are kept
    with ``leeway`` seconds to spare. The user is the claim ``mid_claim``, an int64 as a number or in decimal.

    ``session.data`` is all claims. ``key``, ``room_id``, ``platform``, ``device`` and ``accepts`` are the
    claims of these names. ``claims`` names others: ``{"room_id": "room", "device": ""}`` takes the room
    from ``room`` and the device from none. ``cookie`` and ``origins`` are those of
    :class:`~goim_core.auth.TokenAuth`, which says where a client puts its token.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        key: str | bytes | None = None,
        *,
        algorithms: str | Iterable[str],
        jwks: str | os.PathLike[str] | None = None,
        audience: str | Iterable[str] | None = None,
        issuer: str | Iterable[str] | None = None,
        leeway: float = 0.0,
        mid_claim: str = "sub",
        claims: Mapping[str, str] | None = None,
        require: Iterable[str] = ("exp",),
        cookie: str = "",
        origins: Iterable[str] = (),
    ) -> None:
        super().__init__(cookie=cookie, origins=origins)
        allowed = _algorithms(texts("algorithms", algorithms))
        if (key is None) == (jwks is None):
            raise ConfigurationError("key: expected either key or jwks")
        if isinstance(leeway, bool) or not isinstance(leeway, int | float) or not 0 <= leeway <= 86400:
            raise ConfigurationError(f"leeway: expected seconds, 0 to 86400, got {leeway!r}")
        if not isinstance(mid_claim, str) or not mid_claim:
            raise ConfigurationError(f"mid_claim: expected a claim's name, got {mid_claim!r}")
        self._mid_claim = mid_claim
        self._leeway = leeway
        self._claims = _claim_names(claims or {})
        self._audience = None if audience is None else texts("audience", audience)
        self._issuer = None if issuer is None else texts("issuer", issuer)
        # exp and nbf are checked here, on the server's clock.
        off = dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_sub", "verify_jti"), False)
        self._options: Any = {"require": texts("require", require, least=0), **off}
        self._keys: _FixedKey | _KeySet
        self._keys = _FixedKey(key, allowed) if jwks is None else _KeySet(Path(jwks), allowed)

    def verify(self, token: str) -> Mapping[str, Any]:
        """The fields that ``token`` signs; refuses it when it is forged, has run out or is for others."""
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:  # no extension is understood here: RFC 7515 section 4.1.11
                raise refused("crit: not supported")
            key = self._keys.for_token(header, self.now())
            claims = jwt.decode(
                token,
                key.material,
                algorithms=[key.algorithm],
                options=self._options,
                audience=self._audience,
                issuer=self._issuer,
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise _refusal(error) from None
        if claims.get("nbf") is not None and seconds("nbf", claims["nbf"]) > self.now() + self._leeway:
            raise refused("nbf: the token is not valid yet")
        fields: dict[str, Any] = {} if "data" in self._claims else {"data": claims}
        for name, claim in self._claims.items():
            if claim and claims.get(claim) is not None:
                fields[name] = claims[claim]
        if claims.get("exp") is not None:
            fields["expires"] = self.not_expired(claims["exp"], self._leeway)
        return {**fields, "mid": self._mid(claims)}

    def _mid(self, claims: Mapping[str, Any]) -> int:
        name = self._mid_claim
        if name not in claims:
            raise refused(f"{name}: missing from the token")
        mid = claims[name]
        if isinstance(mid, str) and _DECIMAL.fullmatch(mid):
            mid = int(mid)
        if type(mid) is not int or not -(2**63) <= mid < 2**63:
            raise refused(f"{name}: expected a user id, an int64")
        return mid


_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,18}")


def _algorithms(names: list[str]) -> list[str]:
    known = get_default_algorithms()
    for name in names:
        if name not in (*SYMMETRIC, *ASYMMETRIC):
            raise ConfigurationError(
                f"algorithms: expected of {', '.join((*SYMMETRIC, *ASYMMETRIC))}; got {name!r:.80}"
            )
        if name not in known:
            raise ConfigurationError(f"algorithms: {name} needs cryptography: pip install 'goim_core[jwt]'")
    if len({name in SYMMETRIC for name in names}) != 1:
        # With both, a token could have a public key, which anybody has, taken for the shared secret.
        raise ConfigurationError("algorithms: expected those of a shared secret or of a public key, not both")
    return list(dict.fromkeys(names))


def _claim_names(given: Mapping[str, str]) -> dict[str, str]:
    names = {name: name for name in (*CHOSEN, "key")}
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"claims: expected names of claims, got {given!r:.80}")
    for name, claim in given.items():
        if name not in (*names, "data") or not isinstance(claim, str):
            raise ConfigurationError(
                f"claims: expected names of claims for {', '.join(names)}, data; got {name!r:.80}"
            )
    return {**names, **given}


def _refusal(error: Exception) -> Disconnect:
    # PyJWT's own words may repeat what is in the token.
    if isinstance(error, jwt.MissingRequiredClaimError):
        return refused(f"{error.claim}: missing from the token")
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return refused(reason)
    return refused("token: expected a JWT in three parts")


_REASONS: dict[type[Exception], str] = {
    jwt.InvalidSignatureError: "token: the signature does not fit",
    jwt.InvalidAlgorithmError: "alg: not allowed here",
    jwt.InvalidAudienceError: "aud: the token is not for this server",
    jwt.InvalidIssuerError: "iss: not trusted here",
}


# Keys.


@frozen
class _Key:
    """What verifies tokens of one algorithm. ``material`` is bytes or an object of cryptography."""

    algorithm: str
    material: Any
    kid: object = None


class _FixedKey:
    """One key, for all tokens."""

    def __init__(self, key: str | bytes | None, allowed: list[str]) -> None:
        if not isinstance(key, str | bytes) or not key:
            raise ConfigurationError(f"key: expected text or bytes, got {type(key).__name__}")
        self._keys = {name: self._prepared(key, name) for name in allowed}

    @staticmethod
    def _prepared(key: str | bytes, algorithm: str) -> _Key:
        try:
            material = get_default_algorithms()[algorithm].prepare_key(key)
            return _checked(_Key(algorithm, material))
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise ConfigurationError(f"key: no key for {algorithm}: {error}") from None

    def for_token(self, header: Mapping[str, Any], _: float) -> _Key:
        """The key for a token with this header."""
        alg = header.get("alg")
        if not isinstance(alg, str) or alg not in self._keys:
            raise jwt.InvalidAlgorithmError
        return self._keys[alg]


class _KeySet:
    """The keys in a file, as it is now."""

    def __init__(self, path: Path, allowed: list[str]) -> None:
        self._path = path
        self._allowed = allowed
        self._looked = 0.0
        self._complaint = ""
        self._version: tuple[int, int, int] | None = None
        try:
            self._keys = self._read()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"jwks: cannot use {str(path)!r}: {_words(error)}") from None

    def for_token(self, header: Mapping[str, Any], now: float) -> _Key:
        """The key for a token with this header: the one of its ``kid``, or the only one there is."""
        if abs(now - self._looked) >= LOOK_AGAIN:  # a wall clock may be set back
            self._looked = now
            self._look()
        found = self._find(header)
        if not found and "kid" in header:
            self._look()
            found = self._find(header)
        if not found:
            raise refused("kid: no such key here for the token's algorithm")
        if len(found) > 1:
            raise refused("kid: missing from the token, or several keys have it")
        return found[0]

    def _find(self, header: Mapping[str, Any]) -> list[_Key]:
        alg, kid = header.get("alg"), header.get("kid")
        if alg not in self._allowed:
            raise jwt.InvalidAlgorithmError
        return [key for key in self._keys if key.algorithm == alg and kid in (None, key.kid)]

    def _look(self) -> None:
        try:
            if self._version != _version(self._path.stat()):
                self._keys = self._read()
                self._complaint = ""
        except (OSError, ValueError) as error:
            complaint = _words(error)
            if complaint != self._complaint:  # once: strangers can have it looked at
                _log.warning("jwks: the keys of %s stay as they were: %s", self._path, complaint)
            self._complaint = complaint

    def _read(self) -> list[_Key]:
        with self._path.open("rb") as file:
            # Taken before reading: what is written meanwhile makes another version.
            self._version = _version(os.fstat(file.fileno()))
            try:
                found = json.loads(file.read())["keys"]
                entries = [entry for entry in found if isinstance(entry, dict)]
            except (ValueError, LookupError, TypeError, RecursionError):
                raise ValueError("expected a JSON object with a list 'keys'") from None
        keys = [key for entry in entries for key in _of_entry(entry, self._allowed)]
        if not keys:
            raise ValueError(f"no key in it is for {', '.join(self._allowed)}")
        return keys


def _of_entry(entry: Mapping[str, Any], allowed: list[str]) -> list[_Key]:
    """The keys that one entry of a JWK set is: one for each algorithm, since RSA has several."""
    uses = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
        return []
    keys = []
    for algorithm in allowed:
        if entry.get("alg", algorithm) != algorithm:
            continue
        verifier = get_default_algorithms()[algorithm]
        try:
            # prepare_key checks the curve; a set may well hold keys for others.
            material = verifier.prepare_key(verifier.from_jwk(dict(entry)))
        except (jwt.PyJWTError, ValueError, TypeError, LookupError):
            continue
        keys.append(_checked(_Key(algorithm, material, entry.get("kid"))))
    return keys


def _checked(key: _Key) -> _Key:
    """``key`` where it may be used; raises ValueError."""
    material = key.material
    if isinstance(material, bytes):
        if len(material) < SYMMETRIC[key.algorithm]:
            raise ValueError(f"expected at least {SYMMETRIC[key.algorithm]} bytes, got {len(material)}")
    elif hasattr(material, "private_bytes"):
        raise ValueError("expected the public key, got the private one")
    elif getattr(material, "key_size", RSA_BITS) < RSA_BITS and key.algorithm[:2] in ("RS", "PS"):
        raise ValueError(f"expected an RSA key of at least {RSA_BITS} bits, got {material.key_size}")
    return key


def _version(file: os.stat_result) -> tuple[int, int, int]:
    return file.st_mtime_ns, file.st_size, file.st_ino


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
