"""Lines of the client, and mails as lines for the client. Pure.

The answer to RETR ends with a line that has a single dot, so a line of a mail that
begins with a dot gets another. Some clients take a bare LF as the end of a line. So
each LF is sent as CRLF: otherwise a mail could end its own answer, and what follows in
it would be taken for answers of the server. RFC 1939 §3.
"""

from __future__ import annotations

from typing import Final

LINE_BYTES_MAX: Final = 16_384
"""Longest line of a client. RFC 2449 §4 has 255 octets; names, passwords and SASL need
more. It is twice a line of SASL (`obox.auth.sasl.LINE_BYTES_MAX`), which a line of AUTH
has behind the mechanism."""


class Input:
    """Splits what a client sends into lines."""

    __slots__ = ("_skipping", "buffered")

    def __init__(self) -> None:
        self.buffered = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Take bytes; they may be split anywhere."""
        self.buffered += data

    def next(self) -> bytes | None:
        """Return the next line without its end, None if there is no whole line.

        A line that is too long is returned cut to more than LINE_BYTES_MAX.
        """
        buffer = self.buffered
        end = buffer.find(b"\n")
        if end < 0:
            if len(buffer) > LINE_BYTES_MAX + 1:
                self._skipping = True
                del buffer[LINE_BYTES_MAX + 2 :]
            return None
        line = bytes(buffer[: min(end, LINE_BYTES_MAX + 2)])
        del buffer[: end + 1]
        if self._skipping:
            self._skipping = False
            return line.ljust(LINE_BYTES_MAX + 1)
        return line.removesuffix(b"\r")

    @property
    def waiting(self) -> bool:
        """Return whether the client is in the middle of a line."""
        return bool(self.buffered)

    def clear(self) -> bytes:
        """Return the input that has not been used, and forget it."""
        rest = bytes(self.buffered)
        self.buffered.clear()
        self._skipping = False
        return rest


class Output:
    """Makes a mail into the lines of an answer, piece by piece.

    body_lines: how many lines of the body are sent behind the header; None: all.
    """

    __slots__ = ("_at_start", "_held", "_in_header", "_left")

    def __init__(self, body_lines: int | None = None) -> None:
        self._left = body_lines
        self._in_header = True
        self._held = b""
        self._at_start = True

    @property
    def complete(self) -> bool:
        """Return whether the pieces that follow add nothing."""
        return self._left == 0 and not self._in_header

    def piece(self, data: bytes) -> bytes:
        """Return what is sent for the next piece of the mail."""
        data = self._held + data
        # The LF of a CRLF may be in the next piece.
        self._held = b"\r" if data.endswith(b"\r") else b""
        if self._held:
            data = data[:-1]
        if not data:
            return b""
        data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if self._left is not None:
            data = self._cut(data)
        stuffed = data.replace(b"\n.", b"\n..")
        if self._at_start and stuffed.startswith(b"."):
            stuffed = b"." + stuffed
        if data:
            self._at_start = data.endswith(b"\n")
        return stuffed

    def end(self) -> bytes:
        """Return what is sent behind the last piece."""
        held = b"" if self.complete else self._held
        return held + (b".\r\n" if self._at_start and not held else b"\r\n.\r\n")

    def _cut(self, data: bytes) -> bytes:
        """Return the part of a piece that TOP sends."""
        start = 0
        if self._in_header:
            if self._at_start and data.startswith(b"\r\n"):
                start = 2
            elif (end := data.find(b"\r\n\r\n")) >= 0:
                start = end + 4
            else:
                return data
            self._in_header = False
        assert self._left is not None
        lines = data.count(b"\n", start)
        if lines < self._left:
            self._left -= lines
            return data
        for _ in range(self._left):
            start = data.index(b"\n", start) + 1
        self._left = 0
        return data[:start]
