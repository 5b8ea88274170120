"""The admin API over HTTP: doveadm's JSON at /doveadm/v1.

    POST /doveadm/v1               [["kick", {"user": "anna"}, "tag"]]
        returns  [["doveadmResponse", [{...}], "tag"]]
        or       [["error", {"type": "exitCode", "exitCode": 67, ...}, "tag"]]
    POST /doveadm/v1?backend=mail2 the same at another backend of the cluster
    GET  /doveadm/v1               the commands with their parameters
    GET  /doveadm/v1/openapi.json  the same as an OpenAPI document

Commands of a request run in order. If a command fails, the next command still runs.
With `Accept: application/x-ndjson` and a single command, each row is sent on a line of
its own as soon as it is found. The progress of long commands comes between rows.
`oboxadm` reads this form.

Access: over a unix socket, root and the service user need no key. Over TCP the key is
needed (`Basic doveadm:key` or `X-Dovecot-API base64(key)`). If no key is set, this path
does not exist.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from . import source
from .answers import encoded, is_light
from .loading import loaded
from .parts import Admin
from .run import Outcome, guarded, line
from .table import TABLE, Event

PATH: Final = "/doveadm/v1"
BODY_BYTES_MAX: Final = 8 << 20
"""Largest body of a request. It has room for some hundred thousand user names."""
COMMANDS_MAX: Final = 100
"""Commands in a single request."""
LINES: Final = "application/x-ndjson"


class Runner(Protocol):
    """Runs a verb, as `guarded` does."""

    def __call__(
        self, admin: Admin, name: str, raw: object, outcome: Outcome, *, backend: str = ""
    ) -> AsyncIterator[Event]: ...


def routes(
    admin: Admin, *, key: str, version: str, run: Runner = guarded, asked: source.Answerer | None = None
) -> Sequence[BaseRoute]:
    """Return the API's routes. key: "" if there is no key. run: runs the verbs. asked:
    answers the destinations of `metacache pull`; None: this process does."""

    def refusal(request: Request) -> Response | None:
        if request.state.local:
            return None
        if not key:
            return Response(status_code=404)
        if _key_fits(request.headers.get("authorization", ""), key):
            return None
        return Response("a key is needed\n", 401, {"WWW-Authenticate": 'Basic realm="obox"'})

    async def listing(request: Request) -> Response:
        from .openapi import commands

        await loaded()
        return refusal(request) or JSONResponse(commands())

    async def openapi(request: Request) -> Response:
        from .openapi import document

        await loaded()
        return refusal(request) or JSONResponse(document(version))

    async def post(request: Request) -> Response:
        return refusal(request) or await _run(
            admin, request, partial(run, backend=request.query_params.get("backend", ""))
        )

    return [
        *source.routes(admin, PATH, refusal, asked),
        Route(PATH, post, methods=["POST"]),
        Route(PATH, listing, methods=["GET"]),
        Route(f"{PATH}/openapi.json", openapi, methods=["GET"]),
    ]


async def _run(admin: Admin, request: Request, run: Runner) -> Response:
    """Run the commands of a request, in order."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            return Response(f"allowed: {BODY_BYTES_MAX} bytes\n", 413)
    try:
        calls = msgspec.json.decode(bytes(body), type=list[tuple[str, dict[str, Any], str]])
    except msgspec.DecodeError as error:
        return Response(f'not [["command", {{parameters}}, "tag"], ...]: {error}\n', 400)
    except RecursionError:
        return Response("nested too deeply\n", 400)
    if len(calls) > COMMANDS_MAX:
        return Response(f"allowed: {COMMANDS_MAX} commands in a request\n", 400)
    if LINES in request.headers.get("accept", "") and len(calls) == 1:
        name, params, _ = calls[0]
        return StreamingResponse(_lines(admin, name, params, run), media_type=LINES)
    answers = []
    for name, params, tag in calls:
        outcome = Outcome()
        await outcome.take(run(admin, name, params, outcome))
        answers.append(_answer(outcome, name, tag))
    if is_light(answers):
        return Response(msgspec.json.encode(answers), media_type="application/json")
    return StreamingResponse(encoded(answers), media_type="application/json")


def _answer(outcome: Outcome, name: str, tag: str) -> list[Any]:
    if outcome.code == 0:
        return ["doveadmResponse", outcome.rows, tag]
    if name not in TABLE:
        return ["error", {"type": "unknownMethod", "exitCode": outcome.code, "message": outcome.message}, tag]
    error: dict[str, Any] = {"type": "exitCode", "exitCode": outcome.code}
    if outcome.message:
        error["message"] = outcome.message
    if outcome.failures:
        error["users"] = [
            {"user": failure.user, "exitCode": failure.code, "message": failure.message} for failure in outcome.failures
        ]
    if outcome.rows:
        error["rows"] = outcome.rows
    return ["error", error, tag]


async def _lines(admin: Admin, name: str, params: dict[str, Any], run: Runner) -> AsyncIterator[bytes]:
    outcome = Outcome()
    async for event in run(admin, name, params, outcome):
        async for piece in encoded(line(event)):
            yield piece
        yield b"\n"
    yield msgspec.json.encode({"end": {"exitCode": outcome.code, "message": outcome.message}}) + b"\n"


def _key_fits(header: str, key: str) -> bool:
    scheme, _, value = header.partition(" ")
    try:
        given = base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return False
    wanted = key.encode()
    if scheme.lower() == "basic":
        user, _, password = given.partition(b":")
        return user == b"doveadm" and hmac.compare_digest(password, wanted)
    return scheme.lower() == "x-dovecot-api" and hmac.compare_digest(given, wanted)
