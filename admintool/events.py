"""oboxadm events: groups of listeners, and the events that they could not handle."""

from __future__ import annotations

import click

from admintool.verbs import command


@click.group()
def events() -> None:
    """Listeners that hear of changes."""


@events.group("dead-letters")
def letters() -> None:
    """Events that a listener could not handle."""


def add_to(root: click.Group) -> None:
    """Add the commands."""
    group = "--group webhook --limit 10"
    command(events, "eventsGroups", example="oboxadm events groups")
    command(events, "eventsLag", example="oboxadm events lag")
    command(letters, "eventsDeadLettersList", example="oboxadm events dead-letters list --group webhook")
    command(
        letters,
        "eventsDeadLettersShow",
        arguments=("id",),
        usual="flow",
        example="oboxadm events dead-letters show webhook/anna@example.org/000001a22e34a3e2.0badf00d",
    )
    command(
        letters,
        "eventsDeadLettersRedeliver",
        arguments=("id",),
        example=f"oboxadm events dead-letters redeliver {group}",
    )
    command(letters, "eventsDeadLettersPurge", arguments=("id",), example="oboxadm events dead-letters purge --all")
    root.add_command(events)
