"""The table of verbs as documents: doveadm's list of commands, and OpenAPI 3.1 with a
schema for each command.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from .table import TABLE, Verb


def commands() -> list[dict[str, Any]]:
    """Return the list as doveadm's GET answers it: [{"command": …, "parameters":
    [{"name": …, "type": …}]}].
    """
    out = []
    for verb in TABLE.values():
        schema = _schema(verb)
        out.append(
            {
                "command": verb.name,
                "summary": verb.summary,
                "parameters": [
                    {"name": name, "type": _type(kind), "description": kind.get("description", "")}
                    for name, kind in schema.get("properties", {}).items()
                ],
            }
        )
    return out


def _type(schema: dict[str, Any]) -> str:
    """Return doveadm's name of a type."""
    kinds = [schema.get("type"), *(one.get("type") for one in schema.get("anyOf", ()))]
    kind = next((one for one in kinds if one and one != "null"), "string")
    return str({"array": "array", "boolean": "boolean", "integer": "integer"}.get(kind, kind))


def _schema(verb: Verb) -> dict[str, Any]:
    (_,), components = msgspec.json.schema_components([verb.params])
    found: dict[str, Any] = components[verb.params.__name__]
    return found


def document(version: str) -> dict[str, Any]:
    """Return the OpenAPI document."""
    params = {verb.params.__name__: {**_schema(verb), "title": verb.params.__name__} for verb in TABLE.values()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "obox admin API", "version": version},
        "paths": {
            "/doveadm/v1": {"post": _run(), "get": _LISTING},
            "/doveadm/v1/metacache": {"get": _IDENTITY},
            "/doveadm/v1/metacache/{sid}": {"post": _SEND, "delete": _DROP},
        },
        "components": {"schemas": {**params, "Error": _ERROR}, "securitySchemes": _SECURITY},
        "security": [{"basic": []}, {"key": []}, {}],
    }


def _run() -> dict[str, Any]:
    """Describe the POST of commands."""
    calls = [_call(verb) for verb in TABLE.values()]
    return {
        "summary": "Run commands, in order",
        "requestBody": {"required": True, "content": _json({"type": "array", "items": {"oneOf": calls}})},
        "responses": {
            "200": {
                "description": "an answer for each command",
                "content": _json({"type": "array", "items": _ANSWER}),
            },
            "400": {"description": "not a list of commands"},
            "401": {"description": "a key is needed"},
            "404": {"description": "no key is set: the API is on the local unix socket only"},
        },
    }


def _call(verb: Verb) -> dict[str, Any]:
    """Describe a command of a POST."""
    return {
        "type": "array",
        "title": verb.name,
        "description": verb.doc,
        "prefixItems": [
            {"const": verb.name},
            {"$ref": f"#/components/schemas/{verb.params.__name__}"},
            {"type": "string", "description": "a tag of the caller, returned with the answer"},
        ],
        "minItems": 3,
        "maxItems": 3,
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _flag(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "boolean"}, "description": description}


_ROW: Final = {"type": "object", "description": "named columns, which depend on the command"}
_ERROR: Final = {
    "type": "object",
    "properties": {
        "type": {"enum": ["exitCode", "unknownMethod"]},
        "exitCode": {"type": "integer", "description": "sysexits(3); 2: done for some of the users"},
        "message": {"type": "string"},
        "users": {"type": "array", "items": {"type": "object"}},
        "rows": {"type": "array", "items": _ROW},
    },
    "required": ["type", "exitCode"],
}
_ANSWER: Final = {
    "oneOf": [
        {"type": "array", "prefixItems": [{"const": "doveadmResponse"}, {"type": "array", "items": _ROW}, {}]},
        {"type": "array", "prefixItems": [{"const": "error"}, {"$ref": "#/components/schemas/Error"}, {}]},
    ]
}
_SID: Final = {
    "name": "sid",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "a storage id",
}
_REFUSED: Final = {"description": "{exitCode, message}", "content": _json({"type": "object"})}
_LISTING: Final = {"summary": "List the commands", "responses": {"200": {"description": "commands with parameters"}}}
_IDENTITY: Final = {
    "summary": "Which bucket and boot this backend has",
    "responses": {"200": {"description": "{bucket, backend, boot}"}, "409": _REFUSED},
}
_SEND: Final = {
    "summary": "Send a user's local copies to another backend",
    "parameters": [
        _SID,
        _flag("latestOnly", "refuse where the bucket has newer bundles"),
        _flag("clean", "upload everything before"),
    ],
    "responses": {
        "200": {"description": "docs/format.md, Pull", "content": {"application/vnd.obox.pull": {}}},
        "409": _REFUSED,
    },
}
_DROP: Final = {
    "summary": "Drop a user's local copies, except copies in use and changes that the bucket lacks",
    "parameters": [_SID],
    "responses": {"200": {"description": "{copies, bytes, kept, why}"}, "409": _REFUSED},
}
_SECURITY: Final = {
    "basic": {"type": "http", "scheme": "basic", "description": "user doveadm, password: the API key"},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "X-Dovecot-API and the key in base64",
    },
}
