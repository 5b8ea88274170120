#!/usr/bin/env python3
"""What of the AWS command line the manual uses, over boto3: `s3 sync` and the `s3api`
calls that set a bucket up."""

from __future__ import annotations

import json
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

S3: Any = boto3.client("s3", config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}))
Place = tuple[str, str]
"""The bucket and the prefix. Without a bucket the prefix is a directory."""


def place(text: str) -> Place:
    url = urlsplit(text)
    return (url.netloc, url.path.strip("/")) if url.scheme == "s3" else ("", text.rstrip("/"))


def listing(at: Place) -> dict[str, int]:
    """Return the sizes of the objects below the prefix, by key."""
    bucket, prefix = at
    if not bucket:
        top = Path(prefix)
        return {str(path.relative_to(top)): path.stat().st_size for path in top.rglob("*") if path.is_file()}
    pages = S3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
    return {one["Key"][len(prefix) + 1 :]: one["Size"] for page in pages for one in page.get("Contents", ())}


def wanted(key: str, filters: list[tuple[str, str]]) -> bool:
    """Return whether no filter excludes the key. The last filter that matches counts,
    and `*` is any text."""
    out = True
    for option, pattern in filters:
        if fnmatchcase(key, pattern):
            out = option == "--include"
    return out


def sync(source: str, target: str, *options: str) -> None:
    filters = list(zip(options[::2], options[1::2], strict=True))
    assert {option for option, _ in filters} <= {"--include", "--exclude"}
    (from_bucket, from_prefix), to = place(source), place(target)
    there = listing(to) if to[0] or Path(to[1]).exists() else {}
    for key, size in sorted(listing((from_bucket, from_prefix)).items()):
        if not wanted(key, filters) or there.get(key) == size:
            continue
        if from_bucket:
            data = S3.get_object(Bucket=from_bucket, Key=f"{from_prefix}/{key}")["Body"].read()
        else:
            data = Path(from_prefix, key).read_bytes()
        if to[0]:
            S3.put_object(Bucket=to[0], Key=f"{to[1]}/{key}", Body=data)
        else:
            path = Path(to[1], key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def api(call: str, *options: str) -> None:
    given: dict[str, Any] = {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        name = "".join(word.title() for word in option.strip("-").split("-"))
        if value.startswith("file://"):
            given[name] = json.loads(Path(os.getcwd(), value.removeprefix("file://")).read_text())
        elif "=" in value:
            given[name] = dict([value.split("=", 1)])
        else:
            given[name] = value
    assert call in ("put-bucket-versioning", "put-bucket-lifecycle-configuration")
    getattr(S3, call.replace("-", "_"))(**given)


match sys.argv[1:]:
    case ["s3", "sync", *rest]:
        sync(*rest)
    case ["s3api", call, *rest]:
        api(call, *rest)
    case words:
        sys.exit(f"aws of the tests: no {' '.join(words)}")
