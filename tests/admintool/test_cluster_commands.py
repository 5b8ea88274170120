"""`oboxadm cluster …`, on a directory in LMDB while no backend runs, and through a
backend that runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENT_S
from toolhome import ANNA, BEN, Home

from admintool import exits

MEMBER = {"role": "backend", "site": "default", "address": "127.0.0.1"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a backend of a cluster, which does not run."""
    return member(tmp_path / "home", tmp_path / "cluster", "mail1")


def member(path: Path, directory: Path, name: str) -> Home:
    one = Home(path)
    secret = path / "secret"
    secret.write_text("0123456789abcdef" * 4)
    secret.chmod(0o600)
    cluster = f'[cluster]\nbackend = "{name}"\ndirectory = "lmdb://{directory}"\nsecret_file = "{secret}"\n'
    one.config.write_text(one.config.read_text() + cluster)
    return one


def test_a_configuration_without_a_cluster_says_so(tmp_path: Path) -> None:
    got = Home(tmp_path / "home")("cluster", "status")
    assert got.exit_code == exits.CONFIG
    assert "there is no cluster" in got.stderr


def test_nothing_is_made_but_by_init(home: Home, tmp_path: Path) -> None:
    got = home("cluster", "backend", "list")
    assert got.exit_code == exits.CONFIG
    assert "oboxadm cluster init" in got.stderr
    assert not (tmp_path / "cluster").exists()
    assert home.json("cluster", "init", "--groups", "12")[0]["groups"] == 12
    assert home("cluster", "init", "--groups", "13").exit_code == exits.CANNOT_CREATE
    assert home("cluster", "init", "--groups", "0").exit_code == exits.DATA
    assert home.json("cluster", "status")[0]["unassigned"] == 12


def test_a_dump_is_loaded_into_an_empty_directory(home: Home, tmp_path: Path) -> None:
    home("cluster", "init", "--groups", "12")
    home("cluster", "backend", "add", "mail9", "--load-factor", "30")
    home("cluster", "site", "add", "north")
    dump = home("cluster", "dump")
    assert [json.loads(line)["kind"] for line in dump.stdout.splitlines()] == ["settings", "sites", "orders"]
    (tmp_path / "dump").write_text(dump.stdout)
    other = member(tmp_path / "other", tmp_path / "cluster2", "mail2")
    got = other("cluster", "load", str(tmp_path / "dump"))
    assert got.exit_code == 0, got.stderr
    assert other("cluster", "dump").stdout == dump.stdout
    assert other.json("cluster", "backend", "list")[0]["load_factor"] == 30
    assert other("cluster", "load", "-", stdin="no JSON\n").exit_code == exits.DATA
    assert "line 1" in other("cluster", "load", "-", stdin="no JSON\n").stderr


def test_a_question_before_groups_move(home: Home) -> None:
    home("cluster", "init")
    got = home("cluster", "balance", stdin="n\n")
    assert got.exit_code == 0
    assert "each backend has its share" in got.stderr


def test_a_backend_that_runs_is_asked(home: Home) -> None:
    home.start()
    try:
        (row,) = home.json("cluster", "backend", "status")
        assert (row["backend"], row["alive"], row["status"]) == ("mail1", True, "online")
        assert home.json("cluster", "reboots")[0]["state"] == "runs"
        unit = home.json("cluster", "user", "status", "-u", ANNA)[0]["group"]
        assert unit in {row["group"] for row in home.json("cluster", "group", "list", "--backend", "mail1")}
        assert home("cluster", "check").exit_code == 0
        assert home("cluster", "user", "kick", "-u", BEN).exit_code == exits.NO_HOST
        alone = home("cluster", "backend", "evacuate", "--self")
        assert alone.exit_code == exits.TEMPFAIL
        assert "no other backend takes the groups" in alone.stderr
        refused = home("cluster", "backend", "remove", "mail1")
        assert refused.exit_code == exits.TEMPFAIL
        assert "mail1 has 64 groups" in refused.stderr
        assert home("-o", "cluster.backend=x", "cluster", "status").exit_code == exits.USAGE
    finally:
        home.stop()
    (boot,) = home.json("cluster", "reboots")
    assert boot["state"] == "clean"
    assert boot["ended"]
    home.start()
    try:
        assert [row["state"] for row in home.json("cluster", "reboots")] == ["runs", "clean"]
    finally:
        home.stop()


def test_the_configuration_may_be_a_proxys(home: Home, tmp_path: Path) -> None:
    home("cluster", "init", "--groups", "12")
    proxy = member(tmp_path / "proxy", tmp_path / "cluster", "front1")
    text = proxy.config.read_text()
    proxy.config.write_text(text.replace(f'[storage]\nurl = "file://{proxy.path}/bucket"\n', ""))
    assert proxy.json("cluster", "status")[0]["groups"] == 12
    assert proxy("mailbox", "list", "-u", ANNA).exit_code == exits.CONFIG


def test_an_interrupted_evacuation_goes_on(home: Home, tmp_path: Path) -> None:
    """Two backends are registered and do not run, so no group moves. The command waits
    until it is interrupted."""
    home("cluster", "init", "--groups", "4")
    rows = [{"kind": "members", "key": name, "timestamp": 1, "record": MEMBER} for name in ("mail1", "mail2")]
    assigned = {"backend": "mail1", "number": 1, "token": 1}
    rows.append({"kind": "groups", "key": "00003", "timestamp": 1, "record": assigned})
    assert home("cluster", "load", "-", stdin="".join(json.dumps(row) + "\n" for row in rows)).exit_code == 0
    program = [Path(sys.executable).parent / "oboxadm", "-c", home.config, "cluster", "backend", "evacuate", "mail1"]
    # A shell starts what runs in the background with SIGINT ignored.
    program = ["env", "--default-signal=INT", *program]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENT_S
    while not home.json("cluster", "backend", "status", "mail1")[0]["evacuate"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENT_S)
    assert (process.returncode, out, err.strip()) == (exits.TEMPFAIL, "", "oboxadm: aborted")
    assert home.json("cluster", "backend", "status", "mail1")[0]["evacuate"]
    again = home("cluster", "backend", "evacuate", "mail1", "-t", "1")
    assert again.exit_code == exits.TEMPFAIL
    assert "mail1 has 1 group after 1 s" in again.stderr
