"""The admin API: paths, methods, headers, JSON of every shape, parameters of every
type, clients that leave."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import msgspec
from adminservice import KEY, mail, running, write_config
from fuzzing import Wire, at_rest, drive, seeded, strange_text

from obox.admin import TABLE

ANSWER = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*\r\n(?:[!-~]+: [ -~]*\r\n)*\r\n")
NOT_HERE = {"stop", "metacachePull"}
"""These verbs end the backend, or send requests to other hosts."""
PATHS = ("/doveadm/v1", "/doveadm/v1/openapi.json", "/doveadm/v1/metacache", "/healthz", "/readyz", "/metrics", "/")


def number(rng: random.Random) -> Any:
    return rng.choice((0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e300, -0.0, rng.randint(-9, 99)))


def value(rng: random.Random, depth: int = 0) -> Any:
    """Return any value that JSON can have."""
    kind = rng.randint(0, 9)
    if kind < 2 and depth < 4:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if kind == 2 and depth < 4:
        return {strange_text(rng, 5): value(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    if kind < 5:
        return number(rng)
    if kind < 6:
        return rng.choice((None, True, False))
    if kind < 8:
        return rng.choice(("anna@example.org", "ben@example.org", "*", "INBOX", "ALL", "1:*", "2w", "2026-01-31", "x"))
    return strange_text(rng)


def fitting(rng: random.Random, kind: str) -> Any:
    """Return a value that mostly has the right type."""
    if rng.random() < 0.2:
        return value(rng)
    if "list" in kind or "Sequence" in kind or "tuple" in kind:
        return [fitting(rng, "str") for _ in range(rng.randint(0, 3))]
    if "bool" in kind:
        return rng.random() < 0.5
    if "int" in kind or "float" in kind:
        return number(rng)
    words = (
        "anna@example.org",
        "INBOX",
        "Archive",
        "uid flags hdr.subject",
        "ALL",
        "SUBJECT x",
        "NOT NOT ( ALL )",
        "\\Seen",
    )
    return rng.choice(words) if rng.random() < 0.7 else strange_text(rng)


def call(rng: random.Random) -> list[Any]:
    name = rng.choice([name for name in TABLE if name not in NOT_HERE])
    params: dict[str, Any] = {"user": "anna@example.org"} if rng.random() < 0.7 else {}
    for field in msgspec.structs.fields(TABLE[name].params):
        if rng.random() < 0.5 and field.encode_name not in ("user", "users", "allUsers"):
            params[field.encode_name] = fitting(rng, str(field.type).split(" Meta", maxsplit=1)[0])
    # These verbs change users of their own, because other calls need anna.
    if name.startswith("user") or name.startswith("oboxUser"):
        params |= {"user": f"u{rng.randint(0, 5)}"}
    return [name if rng.random() < 0.95 else strange_text(rng), params, rng.choice(("t", "", strange_text(rng)))]


def body(rng: random.Random) -> bytes:
    kind = rng.randint(0, 11)
    if kind == 0:
        levels = rng.choice((10, 500, 990, 1_100, 50_000))
        deep = "[" * levels + "]" * levels if rng.random() < 0.5 else '{"a":' * levels + "1" + "}" * levels
        return rng.choice(("{}", '[["who", {{"user": {}}}, "t"]]', '[["fetch", {}, "t"]]')).format(deep).encode()
    if kind == 1:
        return rng.randbytes(rng.choice((0, 1, 30, 3_000)))
    if kind == 2:
        return json.dumps(value(rng)).encode()
    calls = [call(rng) for _ in range(rng.choice((1, 1, 1, 2, 5, 101)))]
    data = json.dumps(calls, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        at = rng.randint(0, len(data))
        data = data[:at] + rng.randbytes(3) + data[at:]
    return data


def request(rng: random.Random, key: bool) -> bytes:
    if rng.random() < 0.05:
        return rng.randbytes(rng.choice((1, 100, 20_000))) + b"\r\n\r\n"
    path = rng.choice(PATHS) if rng.random() < 0.5 else "/doveadm/v1"
    if rng.random() < 0.2:
        path += "/" + "".join(rng.choice("abc%2f.?&=/~\xa0\x7f ") for _ in range(rng.choice((1, 10, 3_000))))
    method = "POST" if rng.random() < 0.6 else rng.choice(("GET", "HEAD", "DELETE", "PUT", "OPTIONS", "X" * 50, "get"))
    data = body(rng) if method == "POST" or rng.random() < 0.1 else b""
    lines = [f"{method} {path} HTTP/{rng.choice(('1.1', '1.1', '1.1', '1.0', '9.9'))}", "Host: x"]
    if key and rng.random() < 0.9:
        lines.append(f"Authorization: X-Dovecot-API {base64.b64encode(KEY.encode()).decode()}")
    if rng.random() < 0.4:
        lines.append("Accept: application/x-ndjson")
    if rng.random() < 0.1:
        lines.append(
            rng.choice(("Expect: 100-continue", "Upgrade: websocket\r\nConnection: Upgrade", "Connection: close", "X"))
        )
    if rng.random() < 0.5:
        wrong = rng.choice((0, 0, 0, 0, 0, 1, -1, 10**6))
        if data or wrong > 0:
            lines.append(f"Content-Length: {max(0, len(data) + wrong)}")
    else:
        lines.append("Transfer-Encoding: chunked")
        half = rng.randint(0, len(data))
        data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:half], data[half:]) if part)
        data += rng.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\n\r\n", b"zz\r\n", b""))
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


def check(answers: bytes) -> int:
    """Check that each answer whose head has arrived is a valid answer. Return how many
    there are."""
    count, at = 0, 0
    while at < len(answers) and b"\r\n\r\n" in answers[at:]:
        head = ANSWER.match(answers, at)
        assert head, answers[at : at + 300]
        count += 1
        fields = head[0].lower()
        at = head.end()
        if (length := re.search(rb"\r\ncontent-length: ([0-9]+)\r\n", fields)) is not None:
            at += int(length[1])
        elif b"transfer-encoding: chunked" in fields:
            while chunk := re.compile(rb"([0-9a-f]+)\r\n").match(answers, at):
                at = chunk.end() + int(chunk[1], 16) + 2
                if chunk[1] == b"0":
                    break
    return count


async def test_http(tmp_path: Path, fuzz_seconds: float) -> None:
    answered = 0
    with seeded() as rng:
        async with running(write_config(tmp_path)) as service:
            await service.deliver("anna@example.org", [mail(n) for n in range(20)])
            host, _, port = service.backend.listeners.addresses("http")[0].rpartition(":")
            socket = service.backend.parts.config.state_dir / "admin.sock"

            async def one() -> None:
                nonlocal answered
                local = rng.random() < 0.5
                opening = asyncio.open_unix_connection(socket) if local else asyncio.open_connection(host, int(port))
                wire = Wire(rng, *await opening)
                head = False
                for _ in range(rng.choice((1, 1, 2, 4))):
                    # The collection must not run in a turn that is measured.
                    made = await asyncio.to_thread(request, rng, key=not local)
                    head = head or made.startswith(b"HEAD")
                    if rng.random() < 0.15:
                        made = made[: rng.randint(0, len(made))]
                    await wire.send(made)
                got = await wire.end()
                answered += got.count(b"HTTP/1.1 ") if head else await asyncio.to_thread(check, got)

            await drive(fuzz_seconds, one, rest=lambda: at_rest(service.backend.parts.store))
            assert answered
            assert (await service.client.get("/doveadm/v1")).status_code == 200
    print(f"{answered} answers")
