"""oboxadm who, kick: who is logged in."""

from __future__ import annotations

import click

from admintool.verbs import command


def add_to(root: click.Group) -> None:
    command(
        root,
        "who",
        arguments=("mask",),
        short={"separate_connections": "1"},
        example="oboxadm who '*@example.org'\n  oboxadm who -1 --ip 10.0.0.0/8",
    )
    command(root, "kick", arguments=("user",), example="oboxadm kick anna@example.org\n  oboxadm kick --ip 192.0.2.7")
