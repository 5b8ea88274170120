"""S3 keys that obstore cannot name, by boto3: `dir/` (a directory marker), `a//b`, `.`, `..`, control characters.

obox makes none of them; consoles, rclone and mistakes do. obstore drops a final `/`, and ends a LIST with an error at
the others, so that one such key would hide all keys beside it.

Refuses to know: retries, statistics, what a key means.

Diagnostics: StoreError kinds only, as a driver's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from obox.objectstore._driver import ObjectInfo, Page
from obox.objectstore._errors import Refused, StoreError, Unreachable

_UNNAMABLE = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|[\x00-\x1f\x7f]")
"""An element that is empty, `.` or `..`; a control character."""

_PASSING_STATUS = 500
"""From here on an HTTP status says that the store is in trouble, and not that it refuses."""


def unnamable(key: str) -> bool:
    """True for a key that obstore changes or refuses."""
    return _UNNAMABLE.search(key) is not None


class Token(NamedTuple):
    """What a LIST is continued from: S3's continuation token, "" for the first page."""

    text: str


class ExactKeys:
    """LIST and DELETE of one bucket by its exact keys, in threads."""

    def __init__(self, bucket: str, client: Callable[[], Any]) -> None:
        """client: makes a boto3 S3 client; called at the first use."""
        self._bucket = bucket
        self._make = client
        self._client: Any = None

    async def page(self, prefix: str, after: str, limit: int, token: Token) -> Page:
        """One page of keys below prefix, from a token on."""
        words = {"ContinuationToken": token.text} if token.text else {"StartAfter": after} if after else {}
        answer = await self._ask("list", prefix, "list_objects_v2", Prefix=prefix, MaxKeys=limit, **words)
        items = [
            ObjectInfo(row["Key"], row["Size"], row["LastModified"].timestamp()) for row in answer.get("Contents", ())
        ]
        more = answer.get("NextContinuationToken", "") if answer.get("IsTruncated") else ""
        return Page(items, Token(more) if more else None)

    async def names(self, prefix: str) -> list[str]:
        """Names directly below prefix that have keys below them; an empty one is left out: nobody can ask for it."""
        names: list[str] = []
        more: dict[str, str] = {}
        while True:
            answer = await self._ask("list", prefix, "list_objects_v2", Prefix=prefix, Delimiter="/", **more)
            found = [row["Prefix"][len(prefix) : -1] for row in answer.get("CommonPrefixes", ())]
            names += [name for name in found if name]
            token = answer.get("NextContinuationToken", "") if answer.get("IsTruncated") else ""
            if not token or token == more.get("ContinuationToken"):
                return names
            more = {"ContinuationToken": token}

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete keys one by one: some stores read `dir/` in a bulk DELETE as the directory and all that is in it."""
        for key in keys:
            await self._ask("delete", key, "delete_object", Key=key)

    async def _ask(self, op: str, key: str, method: str, **words: Any) -> Any:
        return await asyncio.to_thread(self._ask_now, op, key, method, words)

    def _ask_now(self, op: str, key: str, method: str, words: dict[str, Any]) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError  # heavy: for foreign keys alone

        try:
            if self._client is None:
                self._client = self._make()
            return getattr(self._client, method)(Bucket=self._bucket, **words)
        except (ClientError, BotoCoreError, ValueError) as error:
            raise _translate(f"{op} {key}: {str(error)[:500]}", error) from error


def _translate(what: str, error: Exception) -> StoreError:
    answer: dict[str, Any] = getattr(error, "response", {})
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if isinstance(status, int) and status < _PASSING_STATUS and status != 429:
        return Refused(what)
    return Unreachable(what)
