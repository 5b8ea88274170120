"""oboxadm cluster: the directory of a cluster, its backends, groups and users."""

from __future__ import annotations

import json

import click

from admintool.context import Context, fail
from admintool.verbs import command, show
from obox.admin import TABLE


@click.group()
def cluster() -> None:
    """Many backends on one bucket: who serves whom."""


@cluster.group()
def backend() -> None:
    """The backends of the cluster."""


@cluster.group()
def site() -> None:
    """The sites of the cluster."""


@cluster.group()
def group() -> None:
    """Groups of users, which move as a whole."""


@cluster.group("user")
def cluster_user() -> None:
    """Users, and who serves them."""


@cluster.command()
@click.pass_obj
def dump(obj: Context) -> None:
    """Print the rows of the directory as lines of JSON, for cluster load.

    Beats are left out. A row that cannot be read has value instead of record, in
    base64.

    \b
    Example:
      oboxadm cluster dump > /var/backups/cluster.jsonl
    """
    for event in obj.call(TABLE["clusterDump"], {}):
        if "row" in event:
            click.echo(json.dumps(event["row"], separators=(",", ":")))
        elif "end" in event and event["end"]["exitCode"]:
            fail(event["end"]["message"], event["end"]["exitCode"])


@cluster.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--replace", is_flag=True, help="Let the lines replace newer rows of the directory.")
@click.pass_obj
def load(obj: Context, file: str, *, replace: bool) -> None:
    """Write the rows of a dump into the directory.

    A row that is newer in the directory stays, unless --replace is given. If a line is
    wrong, nothing is written, and the exit code is 65. Rows that the dump does not have
    stay, too. Backends that run write newer rows of their own back. A backend that is
    asked takes at most 8 MiB; without a backend there is no limit.

    \b
    Example:
      oboxadm cluster load /var/backups/cluster.jsonl
    """
    with click.open_file(file, encoding="utf-8") as opened:
        lines = [line.rstrip("\n") for line in opened]
    raise SystemExit(show(obj, TABLE["clusterLoad"], {"lines": lines} | ({"replace": True} if replace else {})))


def add_to(root: click.Group) -> None:
    command(cluster, "clusterInit", example="oboxadm cluster init --groups 400")
    command(cluster, "clusterUpgrade", example="oboxadm cluster upgrade")
    command(cluster, "clusterStatus", usual="flow", example="oboxadm cluster status")
    command(cluster, "clusterCheck", example="oboxadm cluster check --login anna@example.org")
    command(cluster, "clusterReboots", arguments=("mask",), example="oboxadm cluster reboots mail2")
    command(cluster, "clusterMerges", example="oboxadm cluster merges")
    command(cluster, "clusterBalance", example="oboxadm cluster balance --dry-run")
    masks = ("mask",)
    command(backend, "clusterBackendList", arguments=masks, example="oboxadm cluster backend list")
    command(backend, "clusterBackendStatus", arguments=masks, example="oboxadm cluster backend status mail2")
    named = ("backend",)
    command(backend, "clusterBackendAdd", arguments=named, example="oboxadm cluster backend add mail3 --status online")
    command(backend, "clusterBackendRemove", arguments=named, example="oboxadm cluster backend remove mail3")
    command(
        backend,
        "clusterBackendUpdate",
        arguments=named,
        example="oboxadm cluster backend update --load-factor 100 --status online mail2",
    )
    command(
        backend,
        "clusterBackendEvacuate",
        arguments=named,
        short={"timeout": "t"},
        example="oboxadm cluster backend evacuate mail2\n  oboxadm cluster backend evacuate --self -t 600",
    )
    command(site, "clusterSiteAdd", arguments=("site",), example="oboxadm cluster site add north --comment Oslo")
    command(
        site,
        "clusterSiteUpdate",
        arguments=("site",),
        example="oboxadm cluster site update north --status offline",
    )
    command(site, "clusterSiteRemove", arguments=("site",), example="oboxadm cluster site remove north")
    command(
        site,
        "clusterSiteEvacuate",
        arguments=("site",),
        short={"timeout": "t"},
        example="oboxadm cluster site evacuate north -t 600",
    )
    command(site, "clusterSiteList", arguments=masks, example="oboxadm cluster site list")
    command(site, "clusterSiteStatus", arguments=masks, example="oboxadm cluster site status")
    command(group, "clusterGroupList", arguments=masks, example="oboxadm cluster group list --backend mail2")
    command(group, "clusterGroupMove", arguments=("group", "backend"), example="oboxadm cluster group move 12 mail2")
    command(cluster_user, "clusterUserStatus", example="oboxadm cluster user status -u anna@example.org")
    command(
        cluster_user,
        "clusterUserMove",
        arguments=named,
        example="oboxadm cluster user move -u anna@example.org mail2\n"
        "  oboxadm cluster user move -u anna@example.org --unpin",
    )
    command(cluster_user, "clusterUserKick", example="oboxadm cluster user kick -u anna@example.org")
    root.add_command(cluster)
