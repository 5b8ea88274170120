"""oboxadm obox: users as a whole. oboxadm storage: the bucket."""

from __future__ import annotations

import click

from admintool.verbs import command


@click.group()
def obox() -> None:
    """Users as a whole."""


@click.group("user")
def obox_user() -> None:
    """A user's mail, indexes and caches."""


@click.group()
def storage() -> None:
    """The bucket."""


def add_to(root: click.Group) -> None:
    command(
        obox_user, "oboxUserDelete", short={"kick": "k"}, example="oboxadm obox user delete -u anna@example.org --kick"
    )
    command(
        obox_user, "oboxUserWait", short={"timeout": "t"}, example="oboxadm obox user wait -u anna@example.org -t 60"
    )
    command(
        obox_user,
        "oboxUserRename",
        arguments=("user", "new_user"),
        short={"kick": "k"},
        example="oboxadm obox user rename anna@example.org anna.smith@example.org --kick",
    )
    obox.add_command(obox_user)
    root.add_command(obox)
    command(storage, "storageCheck", example="oboxadm storage check")
    command(storage, "storageUpgrade", example="oboxadm storage upgrade -A --rate 200")
    command(storage, "storageFinishUpgrade", example="oboxadm storage finish-upgrade")
    root.add_command(storage)
