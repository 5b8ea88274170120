"""The bucket's own settings: versioning and lifecycle rules, by aioboto3; S3 only.

This module does not know objects. Diagnostics: settings that obox may not read are
named among the problems, and no error is raised.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from obox.objectstore._open import Settings


async def describe(settings: Settings) -> dict[str, Any]:
    """Return facts about the bucket of settings.url.

    versioning ("on", "off", "unknown"), lifecycle (text), expires_current and
    expires_versions (names of rules), problems. A directory or memory has no versions;
    about other stores nothing is known.
    """
    scheme = urlsplit(settings.url).scheme
    if scheme in ("file", "memory"):
        return {"versioning": "off"}
    if scheme != "s3":
        return {"versioning": "unknown"}
    import aioboto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    facts: dict[str, Any] = {"versioning": "unknown", "problems": []}
    try:
        async with aioboto3.Session().client(
            "s3",
            endpoint_url=settings.endpoint_url or None,
            region_name=settings.region or None,
            aws_access_key_id=settings.access_key_id or None,
            aws_secret_access_key=settings.secret_access_key or None,
            config=Config(
                connect_timeout=5,
                read_timeout=settings.deadline_s,
                retries={"total_max_attempts": 2},
                s3=None if settings.addressing == "auto" else {"addressing_style": settings.addressing},
            ),
        ) as client:
            await _ask(client, urlsplit(settings.url).netloc, facts)
    except (BotoCoreError, ValueError) as error:
        facts["problems"].append(f"settings of the bucket: {_short(error)}")
    return facts


async def _ask(client: Any, bucket: str, facts: dict[str, Any]) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        status = (await client.get_bucket_versioning(Bucket=bucket)).get("Status", "")
        facts["versioning"] = "on" if status == "Enabled" else "off"
    except (BotoCoreError, ClientError) as error:
        facts["problems"].append(f"versioning may not be read: {_short(error)}")
    try:
        rules = (await client.get_bucket_lifecycle_configuration(Bucket=bucket)).get("Rules", [])
    except (BotoCoreError, ClientError) as error:
        code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else ""
        if code != "NoSuchLifecycleConfiguration":
            facts["problems"].append(f"lifecycle rules may not be read: {_short(error)}")
            return
        rules = []
    active = [rule for rule in rules if rule.get("Status") == "Enabled"]
    facts["lifecycle"] = f"{len(active)} rules" if active else "no rules"
    facts["expires_current"] = [_name(rule) for rule in active if "Expiration" in rule and _expires(rule)]
    facts["expires_versions"] = [_name(rule) for rule in active if "NoncurrentVersionExpiration" in rule]


def _expires(rule: dict[str, Any]) -> bool:
    """Return whether a rule has days or a date, and not only a delete marker."""
    return bool({"Days", "Date"} & set(rule["Expiration"]))


def _name(rule: dict[str, Any]) -> str:
    return str(rule.get("ID") or rule.get("Prefix") or "a rule without a name")


def _short(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
