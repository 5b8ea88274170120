"""Compressed connections: bounded memory, and any bytes as input."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.net.deflate import INFLATED_BYTES, Deflated, Inflater


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.size = 7

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return self.size


def everything(inflater: Inflater) -> bytes:
    out = []
    while piece := inflater.read():
        assert len(piece) <= INFLATED_BYTES
        out.append(piece)
    return b"".join(out)


@given(st.lists(st.binary(max_size=300)), st.integers(1, 50))
def test_pieces_of_input(lines: list[bytes], size: int) -> None:
    deflate = zlib.compressobj(wbits=-15)
    coded = b"".join(deflate.compress(line) + deflate.flush(zlib.Z_SYNC_FLUSH) for line in lines)
    inflater, found = Inflater(), b""
    for at in range(0, len(coded), size):
        inflater.add(coded[at : at + size])
        found += everything(inflater)
    assert found == b"".join(lines)


@pytest.mark.parametrize("size", [INFLATED_BYTES - 1, INFLATED_BYTES, INFLATED_BYTES + 1, 5 * INFLATED_BYTES])
def test_sizes_around_a_piece(size: int) -> None:
    data = random.Random(size).randbytes(size)
    for plain in (data, bytes(size)):
        deflate = zlib.compressobj(wbits=-15)
        inflater = Inflater()
        inflater.add(deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH))
        assert everything(inflater) == plain


def test_input_that_inflates_a_thousandfold_is_taken_by_the_piece() -> None:
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = deflate.compress(bytes(200 << 20)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 250_000
    inflater = Inflater()
    inflater.add(bomb)
    for _ in range(20):
        assert len(inflater.read()) == INFLATED_BYTES
    assert len(inflater.inflate.unconsumed_tail) > len(bomb) * 0.9


@given(st.lists(st.binary(min_size=1, max_size=100)))
def test_any_bytes(pieces: list[bytes]) -> None:
    inflater = Inflater()
    try:
        for piece in pieces:
            inflater.add(piece)
            everything(inflater)
    except ConnectionResetError:
        pass


def test_a_stream_that_ends() -> None:
    inflater = Inflater()
    deflate = zlib.compressobj(wbits=-15)
    inflater.add(deflate.compress(b"last") + deflate.flush())
    assert inflater.read() == b"last"
    inflater.add(b"more")
    with pytest.raises(ConnectionResetError):
        inflater.read()


@pytest.mark.parametrize("rests", [False, True])
def test_output(rests: bool) -> None:
    """A client inflates what comes with a compressor that was released in between."""
    transport = Transport()
    deflated = Deflated(transport)
    assert deflated.get_write_buffer_size() == 7
    plain = [b"* OK one\r\n", b"x" * 300_000, random.Random(1).randbytes(200_000), b"* OK one\r\n"]
    inflate = zlib.decompressobj(-15)
    for data in plain:
        deflated.write(data)
        assert inflate.decompress(transport.written[-1]) == data
        if rests:
            deflated.rest()
            assert deflated.deflate is None
    assert len(transport.written[1]) < 3_000
    assert not inflate.eof
