"""The source's side of `metacache pull`: requests of other backends to this backend.
They need the same key as the verbs. Members of a cluster send the same as a `Question`
over the trusted link, and need none.

    GET /doveadm/v1/metacache
        returns {"bucket": hex, "backend": name, "boot": name}; with workers also
        "boots": those of all workers, since the answer is of one of them
    POST /doveadm/v1/metacache/<sid>?latestOnly=true&clean=true
        returns the user's local copies as a stream (docs/format.md, "Pull")
        latestOnly: refuse if the bucket has bundles that are newer than the copies here
        clean: upload everything before
    DELETE /doveadm/v1/metacache/<sid>
        drops copies that are not in use and hold nothing that the bucket lacks;
        returns {"copies": n, "bytes": n, "kept": n, "why": text}

A failure before the first byte is answered with 409 and {"exitCode": n, "message":
text}. A later failure is reported in the stream.

The supervisor of workers has no copies. It passes a question on (`obox.workers.verbs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol
from urllib.parse import quote

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..errors import OboxError
from . import exits
from .parts import Admin

log = structlog.get_logger("obox.admin")


class Question(msgspec.Struct, frozen=True):
    """What a destination asks."""

    what: Literal["identity", "copies", "drop", "users"]
    """users: the storage ids of users whose copies are here although other members
    serve them. `after`: only storage ids behind this. Only members ask for this, so it
    has no verb."""
    storage_id: str = ""
    latest_only: bool = False
    clean: bool = False
    after: str = ""

    def request(self) -> tuple[str, str]:
        """Return method and path of the request that says the same."""
        wanted = [f"{name}=true" for name, given in (("latestOnly", self.latest_only), ("clean", self.clean)) if given]
        path = f"/{quote(self.storage_id, safe='')}"
        if self.what == "copies":
            return "POST", f"{path}?{'&'.join(wanted)}"
        return ("DELETE", path) if self.what == "drop" else ("GET", "")


class Answerer(Protocol):
    """Answers a question. Raises OboxError."""

    async def __call__(self, question: Question) -> Response: ...


def routes(
    admin: Admin, path: str, refusal: Callable[[Request], Response | None], asked: Answerer | None = None
) -> Sequence[BaseRoute]:
    """refusal: returns the response to a request without permission, or None. asked:
    answers in place of this process."""
    answers = partial(_answered, asked or partial(_here, admin))

    async def identity(request: Request) -> Response:
        return refusal(request) or await answers(Question("identity"))

    async def send(request: Request) -> Response:
        latest_only, clean = (request.query_params.get(name) == "true" for name in ("latestOnly", "clean"))
        question = Question("copies", request.path_params["sid"], latest_only, clean)
        return refusal(request) or await answers(question)

    async def drop(request: Request) -> Response:
        return refusal(request) or await answers(Question("drop", request.path_params["sid"]))

    return [
        Route(f"{path}/metacache", identity, methods=["GET"]),
        Route(f"{path}/metacache/{{sid}}", send, methods=["POST"]),
        Route(f"{path}/metacache/{{sid}}", drop, methods=["DELETE"]),
    ]


async def answer(admin: Admin, body: bytes, member: str) -> Response:
    """Answer a `Question` that came over the trusted link."""
    try:
        question = msgspec.json.decode(body, type=Question)
    except (msgspec.DecodeError, RecursionError) as error:
        return Response(f"not a question of a pull: {error}\n", 400)
    # The question for users is asked again and again.
    write = log.debug if question.what == "users" else log.info
    write("admin command of a member", member=member, command=f"metacache pull: {question.what}")
    return await _answered(partial(_here, admin), question)


async def _here(admin: Admin, question: Question) -> Response:
    """Raises OboxError."""
    from . import copies  # loaded with the verbs, not at the start

    if question.what == "identity":
        return await copies.identity(admin)
    if question.what == "drop":
        return await copies.drop(admin, question.storage_id)
    if question.what == "users":
        return await copies.left_behind(admin, question.after)
    return await copies.send(admin, question.storage_id, latest_only=question.latest_only, clean=question.clean)


async def _answered(asked: Answerer, question: Question) -> Response:
    try:
        return await asked(question)
    except OboxError as error:
        code = exits.of(error)
        log.info("command of another backend refused", command=question.what, exit_code=code, error=exits.said(error))
        return JSONResponse({"exitCode": code, "message": exits.said(error)}, 409)
