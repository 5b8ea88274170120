"""`storage check` and the deletion of users on a real S3 server with versions and
lifecycle rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
from adminservice import mail, running, write_config
from servers import S3Bucket, s3_bucket, seaweedfs

__all__ = ["s3_bucket", "seaweedfs"]

ANNA = "anna@example.org"


@pytest.mark.needs("weed")
async def test_on_s3(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    server = s3_bucket.server
    more = (
        f'[storage]\nurl = "{s3_bucket.url}/mail"\nendpoint_url = "{server.endpoint_url}"\n'
        f'access_key_id = "{server.access_key_id}"\nsecret_access_key = "{server.secret_access_key}"\n'
    )
    config = write_config(tmp_path)
    text = config.read_text()
    begin = text.index("[storage]")
    config.write_text(text[:begin] + more + text[text.index("[imap]") :])
    client: Any = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        region_name="us-east-1",
    )
    async with running(config) as service:
        rows = {row["check"]: row for row in await service.call("storageCheck")}
        assert {rows[name]["result"] for name in ("rights", "create-only", "range", "list order", "delete")} == {"ok"}
        assert rows["versioning"]["result"] == "ok"
        rule = {"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 30}}
        client.put_bucket_lifecycle_configuration(Bucket=s3_bucket.name, LifecycleConfiguration={"Rules": [rule]})
        rows = {row["check"]: row for row in await service.call("storageCheck")}
        assert rows["lifecycle"]["result"] == "warning"
        await service.deliver(ANNA, [mail(n) for n in range(3)])
        what = {row["what"]: row for row in await service.call("oboxUserDelete", user=ANNA)}
        assert what["mails"]["objects"] == 3
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=s3_bucket.name).get("Contents", [])]
    assert [key for key in keys if "anna" in key] == []
