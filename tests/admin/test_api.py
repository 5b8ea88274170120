"""The HTTP API: authorization, doveadm's JSON, answers as lists and as documents, and
streamed answers."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from adminservice import KEY, Service, running, write_config

from obox.admin import TABLE


def tcp(service: Service) -> str:
    return f"http://{service.backend.listeners.addresses('http')[0]}/doveadm/v1"


def header(scheme: str, text: str) -> dict[str, str]:
    return {"Authorization": f"{scheme} {base64.b64encode(text.encode()).decode()}"}


async def test_a_key_is_asked_for_on_tcp_and_none_on_the_socket(service: Service) -> None:
    call = [["userList", {}, "t"]]
    async with httpx.AsyncClient() as client:
        for headers, status in (
            ({}, 401),
            (header("Basic", f"doveadm:{KEY}"), 200),
            (header("X-Dovecot-API", KEY), 200),
            (header("Basic", f"root:{KEY}"), 401),
            (header("Basic", "doveadm:other"), 401),
            (header("X-Dovecot-API", "other"), 401),
            ({"Authorization": "X-Dovecot-API ???"}, 401),
            ({"Authorization": f"Bearer {KEY}"}, 401),
        ):
            got = await client.post(tcp(service), json=call, headers=headers)
            assert got.status_code == status, headers
            if status == 401:
                assert got.headers["www-authenticate"].startswith("Basic")
    assert (await service.client.post("/doveadm/v1", json=call)).status_code == 200
    mode = (service.backend.parts.config.state_dir / "admin.sock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


async def test_a_foreign_user_on_a_socket_needs_the_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from obox.server import http

    monkeypatch.setattr(http, "of_own_user", lambda transport: False)
    socket = service.backend.parts.config.state_dir / "admin.sock"
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://obox") as client:
        assert (await client.get("/doveadm/v1")).status_code == 401
        assert (await client.get("/doveadm/v1", headers=header("X-Dovecot-API", KEY))).status_code == 200


async def test_without_a_key_the_api_is_on_the_socket_only(tmp_path: Path) -> None:
    config = write_config(tmp_path, "memory://")
    config.write_text(config.read_text().replace(f'api_key = "{KEY}"', ""))
    async with running(config) as service, httpx.AsyncClient() as client:
        for headers in ({}, header("Basic", "doveadm:"), header("X-Dovecot-API", "x")):
            assert (await client.get(tcp(service), headers=headers)).status_code == 404
        assert (await service.client.get("/doveadm/v1")).status_code == 200
        assert (await client.get(tcp(service).replace("/doveadm/v1", "/healthz"))).status_code == 200


async def test_doveadm_json(service: Service) -> None:
    calls = [["userList", {"mask": "anna*"}, "one"], ["nosuch", {}, "two"], ["kick", {"user": "zoe"}, "three"]]
    calls.append(["mailboxCreate", {"user": "anna@example.org", "mailbox": "not a list"}, "four"])
    first, second, third, fourth = (await service.client.post("/doveadm/v1", json=calls)).json()
    assert first[0] == "doveadmResponse"
    assert first[1][0]["user"] == "anna@example.org"
    assert first[2] == "one"
    assert (second[0], second[1]["type"], second[2]) == ("error", "unknownMethod", "two")
    assert third[:1] + third[2:] == ["error", "three"]
    assert third[1]["exitCode"] == 68
    assert fourth[1]["exitCode"] == 65
    assert "mailbox" in fourth[1]["message"]


@pytest.mark.parametrize("body", [b"", b"{}", b"[[1]]", b'[["who"]]', b"\xff", b'[["who", [], "t"]]'])
async def test_rubbish(service: Service, body: bytes) -> None:
    assert (await service.client.post("/doveadm/v1", content=body)).status_code == 400


async def test_limits(service: Service) -> None:
    big = await service.client.post("/doveadm/v1", content=b"[" + b" " * (9 << 20))
    assert big.status_code == 413
    many = await service.client.post("/doveadm/v1", json=[["who", {}, "t"]] * 101)
    assert many.status_code == 400


async def test_lists_and_documents(service: Service) -> None:
    listed = (await service.client.get("/doveadm/v1")).json()
    assert {one["command"] for one in listed} == set(TABLE)
    kick = next(one for one in listed if one["command"] == "metacacheFlush")
    types = {one["name"]: one["type"] for one in kick["parameters"]}
    assert types["importantOnly"] == "boolean"
    assert types["user"] == "string"
    assert types["users"] == "array"
    assert types["minPriority"] == "integer"
    document = (await service.client.get("/doveadm/v1/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    choices = document["paths"]["/doveadm/v1"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {one["title"] for one in choices["items"]["oneOf"]} == set(TABLE)
    text = json.dumps(document)
    for reference in set(part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]):
        assert reference in document["components"]["schemas"]


async def test_rows_stream(service: Service) -> None:
    await service.deliver("anna@example.org", [b"Subject: x\r\n\r\n"] * 3)
    got = await service.client.post(
        "/doveadm/v1",
        json=[["search", {"allUsers": True, "query": ["ALL"]}, "t"]],
        headers={"Accept": "application/x-ndjson"},
    )
    lines = [json.loads(line) for line in got.text.splitlines()]
    assert lines[-1] == {"end": {"exitCode": 0, "message": ""}}
    rows = [line["row"] for line in lines if "row" in line]
    assert [(row["username"], row["uid"]) for row in rows] == [("anna@example.org", uid) for uid in (1, 2, 3)]
    assert any("progress" in line for line in lines)


async def test_a_bug_is_reported_and_logged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(admin: Any, params: Any) -> Any:
        raise ZeroDivisionError
        yield {}

    import dataclasses

    monkeypatch.setitem(TABLE, "who", dataclasses.replace(TABLE["who"], run=broken))
    assert await service.fails("who") == (70, "ZeroDivisionError; the log has more")


Make = Callable[..., Any]


async def test_which_users(service: Service) -> None:
    async def who(**selection: Any) -> list[str]:
        rows = await service.call("mailboxStatus", field=["messages"], mailboxMask=["inbox"], **selection)
        return [row.get("username", "-") for row in rows]

    assert await who(user="ANNA@example.org") == ["-"]
    assert await who(user="*@example.org") == ["anna@example.org", "ben@example.org"]
    assert await who(allUsers=True) == ["anna@example.org", "ben@example.org", "eve@other.org"]
    assert await who(users=["ben@example.org", "anna@example.org"]) == ["ben@example.org", "anna@example.org"]
    with pytest.raises(AssertionError, match="67"):
        await who(user="unknown", noUserdbLookup=True)
    await service.deliver("unknown", [b"Subject: x\r\n\r\n"])
    assert await who(user="unknown", noUserdbLookup=True) == ["-"]
    assert (await service.fails("mailboxList", user="zoe"))[0] == 67
    assert (await service.fails("mailboxList", user="z*"))[0] == 67
    assert (await service.fails("mailboxList"))[0] == 65
    assert (await service.fails("mailboxList", user="a", allUsers=True))[0] == 65


async def test_some_fail(service: Service) -> None:
    await service.call("mailboxCreate", user="anna@example.org", mailbox=["New"])
    result = await service.refused("mailboxCreate", user="*@example.org", mailbox=["New"])
    assert result["exitCode"] == 2, result
    assert [one["user"] for one in result["users"]] == ["anna@example.org"]
    result = await service.refused("mailboxCreate", user="*@example.org", mailbox=["New"])
    assert result["exitCode"] == 73, result
    assert len(result["users"]) == 2
