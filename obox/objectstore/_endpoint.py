"""The address of an S3 server, checked before a request is made.

The library that sends requests does not report an address that is none: it panics, and
the message says nothing. So everything that it cannot parse is refused here.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final

from obox.errors import ConfigError

_ENDPOINT: Final = re.compile(
    r"https?://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?:/[A-Za-z0-9._~/-]*)?"
)
_ALLOWED: Final = "allowed: http://host:port, https://host:port"
_USER: Final = re.compile(r"//.*@")


def endpoint_of(setting: str) -> str:
    """Return the address of the server, without a slash at its end; "" for AWS.

    setting: storage.endpoint_url. If it is empty, the variables that boto3 knows count.
    Raises: ConfigError.
    """
    name, value = "storage.endpoint_url", setting
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if not value and (value := os.environ.get(variable, "")):
            name = variable
    value = value.rstrip("/")
    if value and not _is_endpoint(value):
        shown = _USER.sub("//...@", value)
        raise ConfigError(f'{name} = "{shown}"; {_ALLOWED}')
    return value


def with_bucket(endpoint: str, bucket: str) -> str:
    """Return the address with the name of the bucket before its host.

    Raises: ConfigError for an IP address, since there are no names below it.
    """
    scheme, _, host = endpoint.partition("://")
    found = _ENDPOINT.fullmatch(endpoint)
    if found is not None and _looks_like_an_ip_address(found["host"]):
        raise ConfigError(
            f'storage.addressing = "virtual": {endpoint} has no host name that the bucket could come before; '
            'allowed: addressing = "path", or an endpoint_url with a host name'
        )
    return f"{scheme}://{bucket}.{host}"


def _is_endpoint(value: str) -> bool:
    found = _ENDPOINT.fullmatch(value)
    if found is None or int(found["port"] or 1) > 65535:
        return False
    host: str = found["host"]
    if not _looks_like_an_ip_address(host):
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _looks_like_an_ip_address(host: str) -> bool:
    """Return whether a host must be an IP address: its last label is a number (URL
    Standard, "ends in a number").
    """
    last = host.rstrip(".").rpartition(".")[2]
    return host.startswith("[") or re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", last) is not None
