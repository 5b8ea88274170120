"""oboxadm metacache, fscache: the two local caches."""

from __future__ import annotations

import click

from admintool.verbs import command


@click.group()
def metacache() -> None:
    """Local copies of users' indexes."""


@click.group()
def fscache() -> None:
    """Local copies of mail bodies."""


def add_to(root: click.Group) -> None:
    flush = {"important_only": "i", "min_priority": "p"}
    command(metacache, "metacacheFlush", short=flush, example="oboxadm metacache flush -u anna@example.org -i")
    command(metacache, "metacacheFlushall", arguments=("mask",), short=flush, example="oboxadm metacache flushall -i")
    command(metacache, "metacacheList", arguments=("mask",), example="oboxadm metacache list '*@example.org' --changed")
    command(metacache, "metacacheStatus", usual="flow", example="oboxadm metacache status")
    command(
        metacache,
        "metacacheClean",
        short={"days": "d", "min_priority": "p"},
        example="oboxadm metacache clean -A -p 3 -d 30",
    )
    command(metacache, "metacacheRemove", arguments=("mask",), example="oboxadm metacache remove -y 'old*@example.org'")
    command(
        metacache,
        "metacachePull",
        arguments=("source_backend_host",),
        secrets=("api_key",),
        example="oboxadm metacache pull -A --clean backend2.example.org:8080",
    )
    command(metacache, "metacacheRefresh", example="oboxadm metacache refresh -u anna@example.org")
    command(metacache, "metacacheRescan", example="oboxadm metacache rescan")
    command(metacache, "metacacheBoots", example="oboxadm metacache boots")
    command(
        metacache,
        "metacacheUnpack",
        arguments=("bundle",),
        usual="json",
        example="oboxadm metacache unpack 1f/anna@example.org/x/root/0000000000000000.first.base",
    )
    command(fscache, "fscacheStatus", usual="flow", example="oboxadm fscache status")
    command(fscache, "fscacheRescan", example="oboxadm fscache rescan --max-age 86400")
    root.add_command(metacache)
    root.add_command(fscache)
