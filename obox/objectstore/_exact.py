"""S3 keys that obstore cannot name, by boto3: `dir/` (a directory marker), `a//b`, `.`,
`..`, control characters.

obox never makes such keys; consoles, rclone and mistakes do. obstore drops a final `/`,
and ends a LIST with an error at the others, so that a single such key would hide all
keys next to it.

This module does not know retries, statistics, or the meaning of a key.

Diagnostics: only StoreError kinds, as in a driver.
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
"""From this HTTP status on the store has a problem; below it the store refuses."""


def unnamable(key: str) -> bool:
    """Return whether obstore changes or refuses a key."""
    return _UNNAMABLE.search(key) is not None


class Token(NamedTuple):
    """The place from which a LIST continues: S3's continuation token, "" for the first
    page.
    """

    text: str


class ExactKeys:
    """LIST and DELETE of a bucket by its exact keys, in threads."""

    def __init__(self, bucket: str, client: Callable[[], Any]) -> None:
        """client: makes a boto3 S3 client; called at the first use."""
        self._bucket = bucket
        self._make = client
        self._client: Any = None

    async def page(self, prefix: str, after: str, limit: int, token: Token) -> Page:
        """Return a page of keys below prefix, from a token on."""
        words = {"ContinuationToken": token.text} if token.text else {"StartAfter": after} if after else {}
        answer = await self._ask("list", prefix, "list_objects_v2", Prefix=prefix, MaxKeys=limit, **words)
        items = [
            ObjectInfo(row["Key"], row["Size"], row["LastModified"].timestamp()) for row in answer.get("Contents", ())
        ]
        more = answer.get("NextContinuationToken", "") if answer.get("IsTruncated") else ""
        return Page(items, Token(more) if more else None)

    async def names(self, prefix: str) -> list[str]:
        """Return names directly below prefix that have keys below them.

        An empty name is left out, because nobody can ask for it.
        """
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
        """Delete keys singly.

        In a bulk DELETE some stores read `dir/` as the directory and everything in it.
        """
        for key in keys:
            await self._ask("delete", key, "delete_object", Key=key)

    async def _ask(self, op: str, key: str, method: str, **words: Any) -> Any:
        return await asyncio.to_thread(self._ask_now, op, key, method, words)

    def _ask_now(self, op: str, key: str, method: str, words: dict[str, Any]) -> Any:
        # a heavy import, only for foreign keys
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._client is None:
                self._client = self._make()
            return getattr(self._client, method)(Bucket=self._bucket, **words)
        except (ClientError, BotoCoreError, ValueError) as error:
            raise _translate(f"{op} {key}", error) from error


def _translate(request: str, error: Exception) -> StoreError:
    answer: dict[str, Any] = getattr(error, "response", {})
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    fields = answer.get("Error", {})
    said = f"{status} {fields['Code']}: {fields.get('Message', '')}" if "Code" in fields else str(error)
    what = f"{said[:500]} ({request})"
    if isinstance(status, int) and status < _PASSING_STATUS and status != 429:
        return Refused(what)
    return Unreachable(what)
