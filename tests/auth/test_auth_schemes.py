"""Password schemes: fixed vectors that Dovecot 2.3.19 made, and a comparison in both
directions with a real Dovecot if it is installed."""

import subprocess

import pytest

from obox.auth.schemes import SCHEMES, SchemeError, hash_password, scheme_problem, verify_secret
from obox.errors import Invalid

PASSWORD = "geheim ü"

VECTORS = [
    "{PLAIN}geheim ü",
    "{CLEARTEXT}geheim ü",
    "{plain}geheim ü",
    "{PLAIN.B64}Z2VoZWltIMO8",
    "{SHA256-CRYPT}$5$rounds=1000$CsLPSLRrXz/Lo77j$UawY2ueobHg20dmXzwmVgVI1qj6xs3s52QaQYj/MDX4",
    "{SHA512-CRYPT}$6$rounds=1000$zRf94djW4J1XltPw$.KljPQ4q/uynQq6o6i43VXyHiSFP2yPxsk3pPSoaEBjfN.xhfKoAZ2dhd4o069g5Jm"
    "07rjlBso4xxXOtUiIVa0",
    "{BLF-CRYPT}$2y$04$q0QoQMSALbyLuP0uPXekZecZUEtI8XsJDH0OOibE9C.W9EjIymvS2",
    "{CRYPT}$2y$04$JDhyJk5Qc5YGhPzlQqkNtec87rux91fCxqI3CjDtxtYMrJUjcEo5e",
    "{CRYPT}$1$khED6qW6$5eHmGenbKO9yVdWuoPl8B.",
    "{MD5-CRYPT}$1$khED6qW6$5eHmGenbKO9yVdWuoPl8B.",
    "{CRYPT}$5$rounds=1000$CsLPSLRrXz/Lo77j$UawY2ueobHg20dmXzwmVgVI1qj6xs3s52QaQYj/MDX4",
    # A hash without a scheme is CRYPT, as in Dovecot's passwd-file.
    "$6$rounds=1000$zRf94djW4J1XltPw$.KljPQ4q/uynQq6o6i43VXyHiSFP2yPxsk3pPSoaEBjfN.xhfKoAZ2dhd4o069g5Jm07rjlBso4xxXOt"
    "UiIVa0",
    "$2b$04$JDhyJk5Qc5YGhPzlQqkNtec87rux91fCxqI3CjDtxtYMrJUjcEo5e",
    "{PBKDF2}$1$KRRpH3UJ18abX5sq$10$965d817d8f90d178d6bdf55275b0b43b253cde6d",
    "{ARGON2ID}$argon2id$v=19$m=64,t=1,p=1$LhqEYNbaFDK9lk6gYIjRzA$AoHqUcKBEARxNmEZQcS9NYaUhkFIScMeY6uypr0wWr8",
    "{ARGON2I}$argon2i$v=19$m=64,t=1,p=1$MBW+I3sw5C3jrNPBUWiPkw$fUtUPZJNSXYVYgKxCOBsJcndYURpCSXBzlGI/cr8OPA",
    "{SSHA}/957hcTErz2dYM0FxkFsR92lYmCVfN4h",
    "{SHA256}D+xYoy7mzMSmJEBVwFk0b1VoGr9dnnVD+s7aJarEexo=",
    "{SHA1.HEX}5a130601519a5d29d394f82258d32299cd289cdb",
    "{SHA}5a130601519a5d29d394f82258d32299cd289cdb",
    "{SSHA512.HEX}cd9745c0a274d319d98e558d30dcca85ff52ae1d952c82edfcbc24a862cc27515dc5959ca330fcdd5153fbe9a61c28517b33"
    "261df3f575be9e8e1e2162188dd46c75f066",
]

CHEAP = {"SHA256-CRYPT": 1000, "SHA512-CRYPT": 1000, "BLF-CRYPT": 4, "CRYPT": 4, "PBKDF2": 10}
MADE = ["PLAIN", "CLEARTEXT", "SHA256-CRYPT", "SHA512-CRYPT", "BLF-CRYPT", "CRYPT", "PBKDF2", "ARGON2I", "ARGON2ID"]


@pytest.fixture(autouse=True)
def _small_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obox.auth.schemes.ARGON2_MEMORY_KIB", 64)


@pytest.mark.parametrize("secret", VECTORS)
def test_vectors(secret: str) -> None:
    assert scheme_problem(secret) == ""
    assert verify_secret(secret, PASSWORD)
    for wrong in ("geheim u", "", "geheim ü ", "geheim ü\0", "x" * 5000):
        assert not verify_secret(secret, wrong)


@pytest.mark.parametrize("scheme", MADE)
def test_round_trip(scheme: str) -> None:
    secret = hash_password(scheme, PASSWORD, rounds=CHEAP.get(scheme, 1))
    assert secret.startswith(f"{{{scheme}}}")
    assert ":" not in secret
    assert verify_secret(secret, PASSWORD)
    assert not verify_secret(secret, PASSWORD + "x")
    assert scheme in SCHEMES


def test_salted() -> None:
    assert hash_password("PBKDF2", "x", rounds=1) != hash_password("PBKDF2", "x", rounds=1)


def test_plain_with_a_colon_fits_the_file() -> None:
    secret = hash_password("PLAIN", "a:b ")
    assert secret == "{PLAIN.b64}YTpiIA=="
    assert verify_secret(secret, "a:b ")


def test_bcrypt_reads_72_bytes() -> None:
    secret = hash_password("BLF-CRYPT", "x" * 72, rounds=4)
    # Dovecot does the same.
    assert verify_secret(secret, "x" * 72 + "anything")
    with pytest.raises(Invalid, match="72 bytes"):
        hash_password("BLF-CRYPT", "x" * 73)


@pytest.mark.parametrize(
    ("scheme", "password", "text"),
    [
        ("PLAIN", "", "empty"),
        ("PLAIN", "a\nb", "line end"),
        ("PLAIN", "a\0b", "line end or a NUL"),
        ("PLAIN", "x" * 1025, "1024"),
        ("ROT13", "x", "not one of ARGON2I, "),
    ],
)
def test_not_made(scheme: str, password: str, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        hash_password(scheme, password)


def test_bad_rounds() -> None:
    with pytest.raises(Invalid, match="rounds"):
        hash_password("BLF-CRYPT", "x", rounds=99)


@pytest.mark.parametrize(
    "secret",
    ["{ROT13}x", "{PLAIN.rot13}x", "{PLAIN", "{}x", "$y$j9T$abc$def", "$7$x", "secret"],
)
def test_never_checkable_secrets_are_reported(secret: str) -> None:
    assert scheme_problem(secret)
    with pytest.raises(SchemeError):
        verify_secret(secret, "x")


@pytest.mark.parametrize(
    "secret",
    [
        "{SHA512-CRYPT}junk",
        "{SHA512-CRYPT}$6$onlysalt",
        "{BLF-CRYPT}$2y$junk",
        "{ARGON2ID}junk",
        "{ARGON2ID}$argon2id$v=19$m=1,t=1,p=1$AAAA$AAAA",
        "{PBKDF2}$1$a$b$c",
        "{PBKDF2}$2$a$1$00",
        "{PBKDF2}x",
        "{SSHA}AAAA",
        "{SSHA}ü",
        "{SHA1.hex}zz",
        "{PLAIN.b64}?",
    ],
)
def test_malformed_secrets(secret: str) -> None:
    with pytest.raises(SchemeError) as caught:
        verify_secret(secret, "x")
    assert secret.partition("}")[2] not in str(caught.value)


def test_an_empty_secret_fits_nothing() -> None:
    for secret in ("", "{PLAIN}", "{CRYPT}", "{SHA512-CRYPT}"):
        assert not verify_secret(secret, "")
        assert not verify_secret(secret, "x")


@pytest.mark.needs("dovecot")
@pytest.mark.parametrize("scheme", MADE)
def test_dovecot_accepts_ours(scheme: str) -> None:
    secret = hash_password(scheme, "geheim", rounds=CHEAP.get(scheme, 1))
    done = subprocess.run(["doveadm", "pw", "-t", secret, "-p", "geheim"], capture_output=True, text=True, check=False)
    assert "(verified)" in done.stdout, done.stderr


@pytest.mark.needs("dovecot")
@pytest.mark.parametrize(
    "scheme", ["SHA256-CRYPT", "SHA512-CRYPT", "BLF-CRYPT", "PBKDF2", "SSHA256", "SHA512", "ARGON2I"]
)
def test_we_accept_dovecots(scheme: str) -> None:
    rounds = {"PBKDF2": "10", "BLF-CRYPT": "4", "ARGON2I": "3"}.get(scheme, "1000")
    command = ["doveadm", "pw", "-s", scheme, "-r", rounds, "-p", PASSWORD]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    secret = done.stdout.strip()
    assert verify_secret(secret, PASSWORD)
    assert not verify_secret(secret, "x")
