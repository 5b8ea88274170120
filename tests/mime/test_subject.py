"""Base subjects, RFC 5256 §2.1."""

import pytest

from obox.mime.subjects import base_subject

CASES = [
    (b"", "", False),
    (b"hello", "hello", False),
    (b"Re: hello", "hello", True),
    (b"RE : hello", "hello", True),
    (b"re:re:RE:hello", "hello", True),
    (b"Fw: hello", "hello", True),
    (b"FWD: hello", "hello", True),
    (b"Rex: hello", "Rex: hello", False),
    (b"forward: hello", "forward: hello", False),
    (b"Re[4]: hello", "hello", True),
    (b"Re [4] : hello", "hello", True),
    (b"[list] hello", "hello", False),
    (b"[list] Re: hello", "hello", True),
    (b"Re: [list] hello", "hello", True),
    (b"[a][b] [c] Re: [d] Fwd[2]: [e]hello", "hello", True),
    (b"[only]", "[only]", False),
    (b"Re: [only]", "[only]", True),
    (b"[first][last]", "[last]", False),
    (b"[open hello", "[open hello", False),
    (b"hello (fwd)", "hello", True),
    (b"hello (FWD) (fwd)  ", "hello", True),
    (b"hello [fwd]", "hello [fwd]", False),
    (b"[fwd: hello]", "hello", True),
    (b"[Fwd: Re: [list] hello (fwd)]", "hello", True),
    (b"[fwd: [fwd: hello]]", "hello", True),
    (b"Re: [fwd: hello]", "hello", True),
    (b"[fwd: hello] x", "x", False),
    (b"a\t \r\n  b", "a b", False),
    (b"Re: =?utf-8?q?R=C3=A9sum=C3=A9?= =?utf-8?q?_(fwd)?=", "R\u00e9sum\u00e9", True),
    (b"=?utf-8?q?Re=3A_?=hello", "hello", True),
    (b"Re:", "", True),
    (b"(fwd)", "", True),
]


@pytest.mark.parametrize(("subject", "base", "reply"), CASES)
def test_base(subject: bytes, base: str, reply: bool) -> None:
    assert base_subject(subject) == (base, reply)


@pytest.mark.parametrize("piece", [b"[a]", b"re:", b"[fwd:", b"(fwd)", b"[", b"]", b" ", b"re[", b"[a] re", b"=?"])
def test_any_repetition_ends(piece: bytes) -> None:
    for subject in (piece * 100_000, piece * 300 + b"x" + b"]" * 300):
        assert len(base_subject(subject).base) <= 2_000
