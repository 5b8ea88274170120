"""Password schemes of the Dovecot passwd-file: `{SCHEME}secret`, checked and made.

Invariant: no algorithm is implemented here. bcrypt, argon2-cffi, libpass and hashlib do
the work. This module knows the meaning of each spelling, and nothing of users or files.
Comparisons take the same time wherever the bytes differ. The first password of a scheme
imports its library, in the thread that hashes.

A secret without `{SCHEME}` is CRYPT, as in Dovecot's passwd-file; `{SCHEME.b64}` and
`{SCHEME.hex}` say how raw bytes are written. Formats: crypt(5) for `$1$ $2y$ $5$ $6$`;
RFC 9106 for Argon2; RFC 8018 §5.2 for PBKDF2; RFC 2307 §5.3 for SHA and SSHA.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable

from obox.errors import Invalid

DEFAULT_SCHEME = "CRYPT"
PASSWORD_BYTES_MAX = 1024
"""The longest password. The time of a hash grows with the length, and no client sends
more (Dovecot's AUTH line is 8 KiB).
"""

BCRYPT_BYTES_MAX = 72
"""bcrypt reads no more bytes. Dovecot cuts a longer password silently, so checking does
too; a longer password gets no new hash.
"""

ARGON2_MEMORY_KIB = 65536
"""64 MiB, three passes: the second recommendation of RFC 9106 §4."""

_PBKDF2_BYTES = 20
_SECRET = re.compile(r"\{([A-Za-z0-9-]+)(?:\.([A-Za-z0-9]+))?\}(.*)", re.DOTALL)


class SchemeError(ValueError):
    """The secret cannot be checked: an unknown scheme, or a scheme that does not fit
    its bytes.

    The error contains no secret.
    """


def split_secret(secret: str) -> tuple[str, str, str]:
    """Return (SCHEME, encoding or "", rest) of a passwd-file's secret."""
    if not secret.startswith("{"):
        return DEFAULT_SCHEME, "", secret
    match = _SECRET.fullmatch(secret)
    if match is None:
        raise SchemeError("password has a '{' that no scheme follows")
    return match[1].upper(), (match[2] or "").lower(), match[3]


def scheme_problem(secret: str) -> str:
    """Return why this secret can never be checked, in a few words, or "".

    For the report about a file's lines.
    """
    try:
        scheme, encoding, rest = split_secret(secret)
        if scheme not in _VERIFIERS:
            return f"unknown password scheme {{{scheme}}}"
        if encoding not in _ENCODINGS:
            return f"unknown password encoding {{{scheme}.{encoding.upper()}}}"
        if scheme == "CRYPT":
            _crypt_verifier(rest)
    except SchemeError as error:
        return str(error)
    return ""


def verify_secret(secret: str, password: str) -> bool:
    """Return whether the password fits. This takes as long as its scheme: call it in a
    thread.

    Raises: SchemeError if the secret can never be checked.
    """
    scheme, encoding, rest = split_secret(secret)
    check = _VERIFIERS.get(scheme)
    if check is None:
        raise SchemeError(f"unknown password scheme {{{scheme}}}")
    given = password.encode("utf-8", "surrogatepass")
    if not rest or b"\0" in given or len(given) > PASSWORD_BYTES_MAX:
        return False
    try:
        return check(_decoded(scheme, encoding, rest), given)
    except SchemeError:
        raise
    except (ValueError, TypeError) as error:
        raise SchemeError(f"password does not have the form of {{{scheme}}}") from error


def hash_password(scheme: str, password: str, *, rounds: int | None = None) -> str:
    """Return `{SCHEME}secret` for a passwd-file.

    `rounds`: the scheme's own cost; None chooses a cost of 50 to 100 ms. Raises:
    Invalid for a scheme that cannot be made here or a password that the scheme cannot
    hold.
    """
    name = scheme.strip("{}").upper()
    given = password.encode("utf-8", "surrogatepass")
    if not given:
        raise Invalid("password is empty")
    if b"\0" in given or b"\n" in given or b"\r" in given:
        raise Invalid("password has a line end or a NUL")
    if len(given) > PASSWORD_BYTES_MAX:
        raise Invalid(f"password is longer than {PASSWORD_BYTES_MAX} bytes")
    if name in {"BLF-CRYPT", "CRYPT"} and len(given) > BCRYPT_BYTES_MAX:
        raise Invalid(f"password is longer than {BCRYPT_BYTES_MAX} bytes, all that {{{name}}} reads")
    make = _MAKERS.get(name)
    if make is None:
        raise Invalid(f"password scheme {{{name}}} is not one of {', '.join(sorted(_MAKERS))}")
    if name in _PLAIN and (":" in password or password != password.strip()):
        # a ':' would end the field
        return f"{{{name}.b64}}{base64.b64encode(given).decode()}"
    try:
        return f"{{{name}}}{make(given, rounds)}"
    except ValueError as error:
        raise Invalid(f"{{{name}}} does not work with {rounds} rounds") from error


_PLAIN = frozenset({"PLAIN", "CLEAR", "CLEARTEXT"})
_ENCODINGS = frozenset({"", "b64", "base64", "hex"})
_HEX_DIGEST_BYTES = {"SHA": 20, "SHA1": 20, "SHA256": 32, "SHA512": 64}
_RAW = frozenset({"SHA", "SHA1", "SHA256", "SHA512", "SSHA", "SSHA256", "SSHA512"})
"""Schemes whose secret is bytes: base64 unless the encoding says hex."""


def _decoded(scheme: str, encoding: str, rest: str) -> bytes:
    if encoding not in _ENCODINGS:
        raise SchemeError(f"unknown password encoding {{{scheme}.{encoding.upper()}}}")
    if encoding == "hex":
        return bytes.fromhex(rest)
    if encoding:
        return base64.b64decode(rest, validate=True)
    if scheme in _RAW:
        # Dovecot decides by length as well
        if scheme in _HEX_DIGEST_BYTES and len(rest) == 2 * _HEX_DIGEST_BYTES[scheme]:
            return bytes.fromhex(rest)
        return base64.b64decode(rest, validate=True)
    return rest.encode("utf-8", "surrogatepass")


def _verify_plain(secret: bytes, given: bytes) -> bool:
    return hmac.compare_digest(secret, given)


def _verify_bcrypt(secret: bytes, given: bytes) -> bool:
    import bcrypt

    return bcrypt.checkpw(given[:BCRYPT_BYTES_MAX], secret)


def _verify_md5_crypt(secret: bytes, given: bytes) -> bool:
    from passlib.hash import md5_crypt

    return bool(md5_crypt.verify(given, secret))


def _verify_sha256_crypt(secret: bytes, given: bytes) -> bool:
    from passlib.hash import sha256_crypt

    return bool(sha256_crypt.verify(given, secret))


def _verify_sha512_crypt(secret: bytes, given: bytes) -> bool:
    from passlib.hash import sha512_crypt

    return bool(sha512_crypt.verify(given, secret))


def _crypt_verifier(secret: str) -> Callable[[bytes, bytes], bool]:
    for prefix, check in _CRYPT_PREFIXES.items():
        if secret.startswith(prefix):
            return check
    if not secret:
        return _verify_plain  # an empty secret fits no password, see verify_secret
    kind = secret.split("$")[1] if secret.startswith("$") and secret.count("$") > 1 else ""
    raise SchemeError(
        f"unknown crypt scheme ${kind}$" if kind else "password has no known scheme and is not a crypt hash"
    )


def _verify_crypt(secret: bytes, given: bytes) -> bool:
    return _crypt_verifier(secret.decode("utf-8", "surrogatepass"))(secret, given)


def _verify_argon2(secret: bytes, given: bytes) -> bool:
    import argon2

    try:
        return argon2.PasswordHasher().verify(secret, given)
    except argon2.exceptions.VerifyMismatchError:
        return False
    except argon2.exceptions.VerificationError as error:
        raise SchemeError("Argon2 refused the hash") from error


def _verify_pbkdf2(secret: bytes, given: bytes) -> bool:
    # ValueError is raised if there are not five.
    empty, kind, salt, rounds, digest = secret.split(b"$")
    if empty or kind != b"1":
        raise SchemeError("{PBKDF2} is supported in the form $1$salt$rounds$hex only")
    found = hashlib.pbkdf2_hmac("sha1", given, salt, int(rounds), _PBKDF2_BYTES)
    return hmac.compare_digest(found, bytes.fromhex(digest.decode("ascii")))


def _verify_digest(algorithm: str, salted: bool) -> Callable[[bytes, bytes], bool]:
    size = hashlib.new(algorithm).digest_size

    def check(secret: bytes, given: bytes) -> bool:
        if len(secret) < size + salted or (not salted and len(secret) != size):
            raise SchemeError(f"{algorithm} digest of {len(secret)} bytes")
        return hmac.compare_digest(hashlib.new(algorithm, given + secret[size:]).digest(), secret[:size])

    return check


_CRYPT_PREFIXES: dict[str, Callable[[bytes, bytes], bool]] = {
    "$1$": _verify_md5_crypt,
    "$2a$": _verify_bcrypt,
    "$2b$": _verify_bcrypt,
    "$2y$": _verify_bcrypt,
    "$5$": _verify_sha256_crypt,
    "$6$": _verify_sha512_crypt,
}

_VERIFIERS: dict[str, Callable[[bytes, bytes], bool]] = {
    "PLAIN": _verify_plain,
    "CLEAR": _verify_plain,
    "CLEARTEXT": _verify_plain,
    "CRYPT": _verify_crypt,
    "MD5-CRYPT": _verify_md5_crypt,
    "SHA256-CRYPT": _verify_sha256_crypt,
    "SHA512-CRYPT": _verify_sha512_crypt,
    "BLF-CRYPT": _verify_bcrypt,
    "ARGON2I": _verify_argon2,
    "ARGON2ID": _verify_argon2,
    "PBKDF2": _verify_pbkdf2,
    "SHA": _verify_digest("sha1", False),
    "SHA1": _verify_digest("sha1", False),
    "SHA256": _verify_digest("sha256", False),
    "SHA512": _verify_digest("sha512", False),
    "SSHA": _verify_digest("sha1", True),
    "SSHA256": _verify_digest("sha256", True),
    "SSHA512": _verify_digest("sha512", True),
}


def _make_plain(given: bytes, rounds: int | None) -> str:
    return given.decode("utf-8", "surrogatepass")


def _make_bcrypt(given: bytes, rounds: int | None) -> str:
    import bcrypt

    made = bcrypt.hashpw(given, bcrypt.gensalt(10 if rounds is None else rounds)).decode("ascii")
    # the same algorithm; every crypt(3) and Dovecot know the spelling $2y$
    return "$2y$" + made[4:]


def _make_sha256_crypt(given: bytes, rounds: int | None) -> str:
    from passlib.hash import sha256_crypt

    return str(sha256_crypt.using(rounds=100_000 if rounds is None else rounds).hash(given))


def _make_sha512_crypt(given: bytes, rounds: int | None) -> str:
    from passlib.hash import sha512_crypt

    return str(sha512_crypt.using(rounds=100_000 if rounds is None else rounds).hash(given))


def _make_argon2(kind: str) -> Callable[[bytes, int | None], str]:
    """kind: "I" or "ID"."""

    def make(given: bytes, rounds: int | None) -> str:
        import argon2

        hasher = argon2.PasswordHasher(
            time_cost=3 if rounds is None else rounds,
            memory_cost=ARGON2_MEMORY_KIB,
            parallelism=1,
            type=argon2.Type[kind],
        )
        try:
            return hasher.hash(given)
        except argon2.exceptions.HashingError as error:
            raise ValueError(str(error)) from error

    return make


def _make_pbkdf2(given: bytes, rounds: int | None) -> str:
    count = 100_000 if rounds is None else rounds
    salt = secrets.token_urlsafe(12)
    digest = hashlib.pbkdf2_hmac("sha1", given, salt.encode("ascii"), count, _PBKDF2_BYTES)
    return f"$1${salt}${count}${binascii.hexlify(digest).decode('ascii')}"


_MAKERS: dict[str, Callable[[bytes, int | None], str]] = {
    "PLAIN": _make_plain,
    "CLEAR": _make_plain,
    "CLEARTEXT": _make_plain,
    "CRYPT": _make_bcrypt,  # this is as in Dovecot 2.3
    "SHA256-CRYPT": _make_sha256_crypt,
    "SHA512-CRYPT": _make_sha512_crypt,
    "BLF-CRYPT": _make_bcrypt,
    "ARGON2I": _make_argon2("I"),
    "ARGON2ID": _make_argon2("ID"),
    "PBKDF2": _make_pbkdf2,
}

SCHEMES: tuple[str, ...] = tuple(sorted(_VERIFIERS))
"""Schemes that can be checked; `hash_password` makes some of them."""
