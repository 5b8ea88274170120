"""The connection engine over a transport without a socket: flow control, timers, the
end of input, limits, and the drain."""

import asyncio
import gc
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from certificates import certificate
from drivers import Lines, Transport, turns, until
from patience import PATIENT_S

from obox.errors import Limit
from obox.net import Flow, Hub, NoRoom, connection, starttls, stream

FLOW = Flow(chunk_bytes=100, write_buffer_max=3000, ahead_bytes_max=50, ahead_lines_max=4)


def opened(hub: Hub | None = None, flow: Flow = FLOW, remote: str = "192.0.2.1") -> tuple[Lines, Transport]:
    lines = Lines(hub or Hub(), flow)
    return lines, Transport(remote).connect(lines)


# -- idle --------------------------------------------------------------------------------------------------------------


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["client", "close", "abort", "stop", "bug", "lost at work"])
async def test_an_idle_connection_has_no_task_and_is_freed_by_its_references(way: str) -> None:
    hub = Hub()
    with no_collector():
        lines, transport = opened(hub)
        transport.client_sends(b"a\nb\n")
        await turns()
        assert not lines.working
        assert not hub.tasks
        assert lines.gathered_bytes == 0
        assert transport.output == b"hello\na\nb\n"
        if way == "client":
            transport.client_leaves()
        elif way == "close":
            lines.close()
        elif way == "abort":
            lines.abort()
        elif way == "stop":
            lines.stop("now")
        elif way == "bug":
            transport.client_sends(b"bug\n")
        else:
            transport.client_sends(b"wait\n")
            await turns()
            transport.client_leaves()
        await until(lambda: not len(hub.registry) and not hub.tasks)
        assert lines.finished == 1
        assert lines.bugs == (["session failed"] if way == "bug" else [])
        watched = ref(lines)
        del lines, transport
        await turns()
        assert watched() is None


async def test_who_is_there() -> None:
    counts: list[int] = []
    hub = Hub(count=counts.append, now=lambda: 7.0)
    plain, transport = opened(hub, remote="192.0.2.9")
    reported = Lines(hub, FLOW, remote="198.51.100.1", tls=True)
    Transport("192.0.2.9").connect(reported)
    found = [(who.id, who.remote, who.tls, who.since) for who in hub.who()]
    assert found == [(1, "192.0.2.9", False, 7.0), (2, "198.51.100.1", True, 7.0)]
    transport.client_leaves()
    await until(lambda: len(hub.registry) == 1)
    assert counts == [1, 1, -1]
    assert plain.finished == 1


# -- output ------------------------------------------------------------------------------------------------------------


async def test_output_is_gathered_and_goes_out_in_order() -> None:
    lines, transport = opened()
    transport.client_sends(b"".join(b"%d\n" % n for n in range(60)))
    await turns(100)
    assert transport.output == b"hello\n" + b"".join(b"%d\n" % n for n in range(60))
    assert len(transport.sent) < 5
    assert lines.bytes_out == len(transport.output)
    assert lines.bytes_in == len(transport.output) - 6


async def test_a_slow_client_stops_the_work_and_then_the_reading() -> None:
    lines, transport = opened()
    transport.slow = True
    transport.client_sends(b"big\n" * 20)
    await turns(100)
    assert lines.working
    assert lines.congested
    assert lines.unsent_bytes <= FLOW.write_buffer_max + 2 * 1001
    before = len(lines.log)
    assert before < 6
    transport.client_sends(b"x" * 60 + b"\n")
    assert not transport.reading
    while len(lines.log) < 21:
        transport.client_reads()
        await turns()
    transport.client_reads()
    await turns()
    assert transport.reading
    assert not lines.working
    assert transport.output.count(b"x" * 1000) == 20


async def test_output_leaves_while_the_task_waits_for_something_else() -> None:
    lines, transport = opened()
    lines.rested()
    lines.write(b"soon\n")
    await lines.yield_if_due()
    assert b"soon" not in transport.output
    await turns()
    assert transport.output.endswith(b"soon\n")


async def test_small_pieces_between_waits_stop_at_a_slow_client() -> None:
    """None of the pieces is enough for a flush of its own."""
    lines, transport = opened()
    transport.slow = True
    pieces = 40 * FLOW.write_buffer_max // 10

    async def work() -> None:
        for _ in range(pieces):
            lines.write(b"x" * 10)
            await (lines.flush() if lines.full else lines.yield_if_due())
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await turns(4 * pieces)
    assert not task.done()
    assert lines.unsent_bytes <= FLOW.write_buffer_max + 2 * FLOW.chunk_bytes + 20
    while not task.done():
        transport.client_reads()
        await turns()
    transport.client_reads()
    await turns()
    lines.send()
    assert transport.output.count(b"x") == 10 * pieces


async def test_a_client_that_never_reads_is_cut() -> None:
    hub = Hub()
    lines, transport = opened(hub, Flow(chunk_bytes=1, write_buffer_max=1, write_timeout_s=0.02))
    transport.slow = True
    transport.client_sends(b"big\n")
    await until(lambda: not len(hub.registry))
    assert lines.ended == "client does not read"
    assert transport.closed == "aborted"


@pytest.mark.parametrize("ahead", [b"x" * 60 + b"\n", b"\n" * 5])
async def test_a_pipelining_client_is_not_read_further(ahead: bytes) -> None:
    lines, transport = opened()
    transport.client_sends(b"wait\n")
    await turns()
    transport.client_sends(b"a\n")
    assert lines.reading
    transport.client_sends(ahead)
    assert not lines.reading
    assert not transport.reading
    lines.gate.set()
    await turns(20)
    assert transport.reading
    assert lines.log[:2] == ["wait", "a"]


async def test_others_run_during_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock says that much time has passed, so each flush lets other tasks run."""
    time = iter(range(1_000_000))
    hub = Hub(clock=lambda: float(next(time)))
    _, transport = opened(hub, Flow(chunk_bytes=1))
    transport.client_sends(b"a\n" * 50)
    ran = 0
    while hub.tasks:
        await asyncio.sleep(0)
        ran += 1
    assert ran >= 50


# -- timer -------------------------------------------------------------------------------------------------------------


async def test_there_is_a_single_timer() -> None:
    lines, transport = opened()
    lines.due_s = [0.01, 0.01]
    for _ in range(10):
        lines.arm(0.01)
    await until(lambda: lines.log == ["due"] * 3)
    await asyncio.sleep(0.05)
    assert lines.log == ["due"] * 3
    lines.arm(0.01)
    transport.client_leaves()
    await asyncio.sleep(0.05)
    assert lines.log == ["due"] * 3


async def test_the_last_bytes_have_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CLOSE_TIMEOUT_S", 0.02)
    hub = Hub()
    lines, transport = opened(hub)
    transport.slow = True
    lines.write(b"last\n")
    lines.close()
    lines.close()
    assert transport.closed == "closed"
    assert transport.output == b"hello\nlast\n"
    transport.client_sends(b"ignored\n")
    await until(lambda: not len(hub.registry))
    assert transport.closed == "aborted"
    assert lines.log == []


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
async def test_end_of_input_is_not_the_end_of_answers(tls: bool) -> None:
    lines = Lines(Hub(), FLOW, tls=tls)
    transport = Transport().connect(lines)
    assert not lines.eof_received(), "nothing is under way"
    transport.client_sends(b"wait\nb\n")
    assert lines.eof_received() is not tls
    await turns()
    lines.gate.set()
    await turns(20)
    assert transport.output == b"hello\nwait\nb\n"
    assert transport.closed == "closed"


async def test_the_client_leaves_in_the_middle_of_work() -> None:
    hub = Hub()
    pointless, one = opened(hub)
    needed, two = opened(hub)
    for transport in (one, two):
        transport.client_sends(b"begin\nwait\nbig\nnever\n" if transport is two else b"wait\nnever\n")
    await turns()
    for transport in (one, two):
        transport.client_leaves()
    await turns()
    assert not pointless.working
    assert pointless.log == ["wait"], "it was cancelled"
    assert needed.working
    needed.gate.set()
    await turns(20)
    assert needed.log == ["begin", "wait"]
    assert (pointless.finished, needed.finished) == (1, 1)
    assert not len(hub.registry)


async def test_a_driver_may_outlive_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "outlives_client", True)
    lines, transport = opened()
    transport.client_sends(b"a\nb\n")
    # The client leaves before the task has run.
    transport.client_leaves()
    await turns(20)
    assert lines.log == ["a", "b"]
    assert lines.finished == 1
    assert transport.output == b"hello\n"


async def test_a_bug_ends_a_connection_and_no_other() -> None:
    hub = Hub()
    broken, transport = opened(hub)
    _, other = opened(hub)
    transport.client_sends(b"bug\n")
    other.client_sends(b"a\n")
    await turns(20)
    assert broken.bugs == ["session failed"]
    assert transport.closed == "aborted"
    assert other.output == b"hello\na\n"
    assert len(hub.registry) == 1


async def test_cut() -> None:
    """A connection that works has its work cancelled. A connection that is idle gets
    the last words."""
    hub = Hub()
    working, one = opened(hub)
    idle, two = opened(hub)
    one.client_sends(b"wait\n")
    await turns()
    for lines in (working, idle):
        lines.cut(connection.Why.TIMEOUT, "too slow")
    await turns(20)
    assert (one.closed, one.output) == ("aborted", b"hello\n")
    assert (two.closed, two.output) == ("closed", b"hello\nbye timeout: too slow\n")
    assert not len(hub.registry)


# -- stop --------------------------------------------------------------------------------------------------------------


async def test_stop_waits_for_the_command_and_the_transaction() -> None:
    hub = Hub()
    _, idle = opened(hub)
    busy, two = opened(hub)
    within, three = opened(hub)
    two.client_sends(b"wait\nnever\n")
    three.client_sends(b"begin\n")
    await turns()
    stopping = asyncio.ensure_future(hub.stop("going down", 10.0))
    await turns()
    assert idle.output == b"hello\nbye stopped: going down\n"
    assert (two.closed, three.closed) == ("", "")
    late, four = opened(hub)
    assert four.output == b"bye not serving: going down\n"
    busy.gate.set()
    three.client_sends(b"more\nend\n")
    await asyncio.wait_for(stopping, PATIENT_S)
    assert two.output == b"hello\nwait\nbye stopped: going down\n"
    assert three.output == b"hello\nbegin\nmore\nend\nbye stopped: going down\n"
    assert within.ended == ""
    assert late.finished == 1
    assert not len(hub.registry)
    await hub.stop("again", 10.0)


async def test_stop_cuts_what_does_not_end() -> None:
    hub = Hub()
    _, idle = opened(hub)
    idle.slow = True
    idle.waiting = 1
    lines, busy = opened(hub)
    busy.client_sends(b"begin\nwait\n")
    await turns()
    await asyncio.wait_for(hub.stop("going down", 0.02), PATIENT_S)
    assert (idle.closed, busy.closed) == ("aborted", "aborted")
    assert lines.finished == 1
    assert not len(hub.registry)
    assert not hub.tasks


async def test_kick(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    _, transport = opened(hub)
    assert hub.kick("nobody", "out") == 0
    assert hub.kick("", "out") == 1
    assert transport.output == b"hello\nbye stopped: out\n"


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_connections_of_an_address() -> None:
    hub = Hub()
    flow = Flow(address_connections_max=1)
    _, first = opened(hub, flow, "192.0.2.1")
    _, second = opened(hub, flow, "192.0.2.1")
    _, own = opened(hub, flow, "127.0.0.1")
    assert second.output == b"bye limit: Too many connections from your address\n"
    assert (first.closed, second.closed, own.closed) == ("", "closed", "")
    assert hub.registry.addresses == {"192.0.2.1": 1}
    await turns()
    first.client_leaves()
    await turns()
    assert not hub.registry.addresses


async def test_the_longest_idle_gives_way() -> None:
    hub = Hub()
    flow = Flow(connections_max=3)
    made = [opened(hub, flow) for _ in range(3)]
    made[0][1].client_sends(b"begin\n")
    made[1][1].client_sends(b"a\n")
    await turns()
    made[2][0].quiet_since -= 1.0
    _, fourth = opened(hub, flow)
    assert made[2][1].output == b"hello\nbye stopped: Too many connections, try again later\n"
    assert fourth.output == b"hello\n"
    await turns()
    made[1][1].client_sends(b"begin\n")
    fourth.client_sends(b"begin\n")
    await turns()
    refused, fifth = opened(hub, flow)
    assert fifth.output == b"bye limit: Too many connections, try again later\n"
    await turns()
    assert refused.finished == 1
    assert len(hub.registry) == 3
    with pytest.raises(NoRoom) as caught:
        hub.registry.enter(refused, "192.0.2.1", most=0, total=3)
    assert (caught.value.limit, isinstance(caught.value, Limit)) == (3, True)


# -- a proxy -----------------------------------------------------------------------------------------------------------


class Spliced(Lines):
    """A connection that passes its input to its peer. There is no task: each side reads
    as fast as the other side writes."""

    __slots__ = ("peer",)
    peer: "Spliced | None"

    def received(self, data: bytes) -> bool:
        assert self.peer is not None
        self.peer.write(data)
        self.peer.send()
        if self.peer.congested:
            self.pause_reading()
        return False

    def writable(self) -> None:
        if self.peer is not None:
            self.peer.resume_reading()

    async def finish(self) -> None:
        await super().finish()
        if self.peer is not None:
            self.peer.peer = None
            self.peer.close()
            self.peer = None


async def test_a_driver_can_splice_two_connections() -> None:
    hub = Hub()
    client, server = Spliced(hub, FLOW), Spliced(hub, FLOW)
    client.peer, server.peer = server, client
    near, far = Transport().connect(client), Transport().connect(server)
    near.client_sends(b"any bytes")
    far.client_sends(b"\0\1\2")
    assert (near.output, far.output) == (b"hello\n\0\1\2", b"hello\nany bytes")
    assert not hub.tasks
    near.slow = True
    while far.reading:
        far.client_sends(b"x" * 1000)
    assert client.unsent_bytes <= FLOW.write_buffer_max + 1000
    near.client_reads()
    assert far.reading
    near.client_leaves()
    await until(lambda: not len(hub.registry))
    assert far.closed == "closed"


# -- TLS ---------------------------------------------------------------------------------------------------------------


class Secured(Lines):
    """A driver whose command `tls` begins TLS."""

    __slots__ = ("upgrade",)
    upgrade: Any

    async def _answer(self, line: str) -> None:
        await super()._answer(line)
        if line == "tls":
            await self.handshake(self.upgrade)


@pytest.mark.parametrize("way", ["shakes hands", "leaves", "stays silent", "sends rubbish"])
async def test_starttls(way: str, tmp_path: Path) -> None:
    """Input without TLS behind the command is dropped. A handshake that fails ends the
    connection."""
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(*certificate(tmp_path))
    hub, made = Hub(), []

    def factory() -> Secured:
        lines = Secured(hub, FLOW)
        lines.upgrade = starttls(lambda: served, 0.1 if way == "stays silent" else 20.0)
        made.append(lines)
        return lines

    listener = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.sockets[0].getsockname()[1])
    assert await reader.readline() == b"hello\n"
    writer.write(b"tls\nin clear\n")
    assert await reader.readline() == b"tls\n"
    if way == "shakes hands":
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        await writer.start_tls(trusting)
        assert hub.who()[0].tls or made[0].working
        writer.write(b"under TLS\n")
        assert await reader.readline() == b"under TLS\n"
        assert hub.who()[0].tls
        assert made[0].log == ["tls", "under TLS"]
        writer.close()
    elif way == "leaves":
        writer.close()
    elif way == "sends rubbish":
        writer.write(b"a LOGIN x y\r\n" * 10)
    await until(lambda: not len(hub.registry) and not hub.tasks)
    writer.close()
    listener.close()
    assert made[0].finished == 1
    assert made[0].bugs == []
