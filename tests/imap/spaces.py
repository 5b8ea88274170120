"""Commands with more spaces than the grammar has."""

import re

_PIECES = re.compile(rb'"(?:[^"\\]|\\.)*"|~?\{[0-9]+\+?\}\r\n|.', re.DOTALL)


def spaced(data: bytes) -> bytes:
    """Return a command with two spaces for one between arguments, and spaces inside
    its lists. Strings and literals stay as they are."""
    out, at = b"", 0
    while at < len(data):
        found = _PIECES.match(data, at)
        assert found is not None
        piece, at = found[0], found.end()
        if piece.endswith(b"}\r\n"):
            size = int(re.sub(rb"[^0-9]", b"", piece))
            piece, at = piece + data[at : at + size], at + size
        out += {b" ": b"  ", b"(": b"( ", b")": b" )"}.get(piece, piece)
    return out
