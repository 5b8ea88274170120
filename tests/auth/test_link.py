"""X-OBOX-LINK: two members prove to each other that they know a secret. Nobody else can
do that."""

import base64
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.auth import (
    LINK,
    Challenge,
    Forward,
    LinkOwner,
    LinkRefused,
    LinkSender,
    SaslCancelled,
    SaslError,
)
from obox.auth.link import FORWARD_BYTES_MAX, LINE_BYTES_MAX, PROOF_BYTES
from obox.auth.secretfile import SECRETS_MAX, read_secrets
from obox.errors import ConfigError

SECRET, OTHER, UNKNOWN = b"s" * 32, b"o" * 32, b"u" * 32
CERTIFICATE, ANOTHER = b"c" * 32, b"a" * 32
FORWARD = Forward("anna", "anna", "192.0.2.7", 4711, "imap", True, "p1", "b2", 7, 99)
_numbers = itertools.count()


def nonce() -> bytes:
    return next(_numbers).to_bytes(32, "big")


def sender(secret: bytes = SECRET, binding: bytes = CERTIFICATE, forward: Forward = FORWARD) -> LinkSender:
    return LinkSender(secret, forward, nonce=nonce(), binding=binding)


def owner(*secrets: bytes, binding: bytes = CERTIFICATE) -> LinkOwner:
    return LinkOwner(secrets or (SECRET,), nonce=nonce(), unknown=UNKNOWN, binding=binding)


def challenge(of: LinkOwner, by: LinkSender) -> bytes:
    return of.start(LINK, by.first()).wire


def talk(by: LinkSender, to: LinkOwner) -> Challenge | Forward:
    return to.step(by.answer(challenge(to, by)))


def changed(line: bytes, at: int) -> bytes:
    """Return the message with a single bit changed."""
    data = bytearray(base64.b64decode(line))
    data[at] ^= 1
    return base64.b64encode(data)


def test_the_owner_hears_the_forward() -> None:
    assert talk(sender(), owner()) == FORWARD
    assert talk(sender(binding=b""), owner(binding=b"")) == FORWARD


def test_the_first_message_may_come_after_an_empty_challenge() -> None:
    by, to = sender(), owner()
    assert to.start(LINK.lower()) == Challenge(b"")
    step = to.step(by.first())
    assert isinstance(step, Challenge)
    assert to.step(by.answer(step.wire)) == FORWARD


def test_all_secrets_are_accepted_and_the_first_signs() -> None:
    for secret in (SECRET, OTHER):
        assert talk(sender(secret), owner(SECRET, OTHER)) == FORWARD
    with pytest.raises(LinkRefused, match="does not know"):
        talk(sender(b"x" * 32), owner(SECRET, OTHER))


def test_a_sender_with_another_secret_learns_nothing_and_is_refused() -> None:
    """The sender does not know the owner's secret. It is refused even if it accepts the
    owner's answer, as a forger would do."""
    forger, to = sender(OTHER), owner()
    answer = base64.b64decode(challenge(to, forger))
    assert len(answer) == len(base64.b64decode(challenge(owner(), sender())))
    blind = sender(UNKNOWN)
    blind._nonce = forger._nonce
    with pytest.raises(LinkRefused, match="not ours"):
        # Even a forger that has guessed the random bytes is refused.
        to.step(blind.answer(base64.b64encode(answer)))


@pytest.mark.parametrize("at", [0, PROOF_BYTES - 1, PROOF_BYTES, PROOF_BYTES + 20, -1])
def test_a_changed_forward_or_proof_is_refused(at: int) -> None:
    by, to = sender(), owner()
    with pytest.raises(LinkRefused, match="forged"):
        to.step(changed(by.answer(challenge(to, by)), at))


def test_a_replayed_answer_is_refused() -> None:
    by, to = sender(), owner()
    first, second = by.first(), by.answer(challenge(to, by))
    again = owner()
    again.start(LINK, first)
    with pytest.raises(LinkRefused, match="forged"):
        again.step(second)


def test_an_answer_of_an_owner_is_no_answer_of_a_sender() -> None:
    """The proof of an owner is sent back to this owner, and to another owner. Both
    refuse it."""
    by, to = sender(), owner()
    proved = base64.b64decode(challenge(to, by))
    coded = msgspec.msgpack.encode(FORWARD)
    with pytest.raises(LinkRefused):
        to.step(base64.b64encode(proved[32:] + coded))
    # The sender poses as an owner. Its proof belongs to the other role, so it is
    # refused.
    with pytest.raises(LinkRefused):
        sender().answer(base64.b64encode(proved[:32] + b"p" * 32))


def test_a_sender_takes_no_owner_that_cannot_prove_the_secret() -> None:
    by, to = sender(), owner()
    right = challenge(to, by)
    for at in (0, 31, 32, 63):
        with pytest.raises(LinkRefused, match="does not know"):
            by.answer(changed(right, at))
    for form in (b"", b"AAAA", b"not base64", right[:-4]):
        with pytest.raises(LinkRefused, match="form"):
            by.answer(form)


def test_both_sides_have_to_see_one_certificate() -> None:
    """An attacker between the two has another certificate."""
    with pytest.raises(LinkRefused, match="certificate"):
        talk(sender(binding=ANOTHER), owner())
    with pytest.raises(LinkRefused):
        talk(sender(binding=b""), owner())


def test_parts_cannot_move_between_binding_and_forward() -> None:
    coded = msgspec.msgpack.encode(FORWARD)
    by, to = sender(binding=CERTIFICATE), owner(binding=CERTIFICATE + coded[:1])
    first = to.start(LINK, by.first())
    assert first.data[32:] != base64.b64decode(challenge(owner(), by))[32:]


@pytest.mark.parametrize("size", [0, 1, 40, 42, 100])
def test_a_first_message_of_a_wrong_size_is_no_message(size: int) -> None:
    with pytest.raises(SaslError):
        owner().start(LINK, base64.b64encode(b"\x01" * size))


def test_another_version_is_no_message() -> None:
    with pytest.raises(SaslError, match="version"):
        owner().start(LINK, base64.b64encode(b"\x02" + b"n" * 40))


@pytest.mark.parametrize("data", [b"", b"p" * PROOF_BYTES, b"p" * (PROOF_BYTES + FORWARD_BYTES_MAX + 1)])
def test_a_cut_or_large_last_message_is_no_message(data: bytes) -> None:
    to = owner()
    to.start(LINK, sender().first())
    with pytest.raises(SaslError):
        to.step(base64.b64encode(data))


def test_lines_are_bounded_and_the_largest_forward_passes() -> None:
    with pytest.raises(SaslError, match="too long"):
        owner().start(LINK, b"A" * (LINE_BYTES_MAX + 1))
    room = FORWARD_BYTES_MAX - len(msgspec.msgpack.encode(msgspec.structs.replace(FORWARD, user="")))
    largest = msgspec.structs.replace(FORWARD, user="u" * (room - 2))
    by, to = sender(forward=largest), owner()
    line = by.answer(challenge(to, by))
    assert len(line) <= LINE_BYTES_MAX
    assert to.step(line) == largest
    with pytest.raises(ValueError, match="allowed: 2048"):
        sender(forward=msgspec.structs.replace(FORWARD, user="u" * FORWARD_BYTES_MAX))


def test_a_member_may_give_up() -> None:
    to = owner()
    to.start(LINK, sender().first())
    with pytest.raises(SaslCancelled):
        to.step(b"*")


def test_what_a_member_signs_has_to_be_a_forward() -> None:
    by, to = sender(), owner()
    by._forward = b"\x01"
    with pytest.raises(SaslError, match="cannot be read"):
        to.step(by.answer(challenge(to, by)))


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_any_bytes_are_refused(lines: list[bytes]) -> None:
    to = owner()
    for index, line in enumerate(lines):
        try:
            step = to.start(LINK, line) if index == 0 else to.step(line)
        except (SaslError, LinkRefused):
            continue
        assert isinstance(step, Challenge)


# -- the file ----------------------------------------------------------------------------------------------------------


def secret_file(path: Path, text: bytes, mode: int = 0o600) -> Path:
    file = path / "secret"
    file.write_bytes(text)
    file.chmod(mode)
    return file


def test_a_file_has_a_secret_a_line(tmp_path: Path) -> None:
    text = b"# new\n" + SECRET + b"\r\n\n  " + OTHER + b"  \n" + SECRET
    assert read_secrets(secret_file(tmp_path, text)) == ((SECRET, OTHER), [])


@pytest.mark.parametrize(("text", "mode", "reported"), [(SECRET[:-1], 0o600, "32 characters"), (SECRET, 0o640, "0600")])
def test_what_is_weak_is_reported_and_used(tmp_path: Path, text: bytes, mode: int, reported: str) -> None:
    secrets, warnings = read_secrets(secret_file(tmp_path, text, mode))
    assert secrets == (text,)
    assert len(warnings) == 1
    assert reported in warnings[0]


@pytest.mark.parametrize("text", [b"", b"# nothing\n", b"\n".join(b"%032d" % n for n in range(SECRETS_MAX + 1))])
def test_a_file_without_secrets_or_with_too_many_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError, match="allowed: one a line, 1 to 16"):
        read_secrets(secret_file(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_secrets(tmp_path / "secret")
