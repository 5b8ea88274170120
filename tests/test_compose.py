"""`minio-compose.yml`: names, settings, ports and the order of the start fit the
program and its image.

No container engine here: the file is read, each configuration in it is loaded, and the
scripts of the services that run once are run on this machine.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from obox.auth.secretfile import read_secrets
from obox.cluster.cassandra import read_url
from obox.config import Config, load
from obox.net import Certificates

ROOT = Path(__file__).parent.parent
FILE: dict[str, Any] = yaml.safe_load((ROOT / "minio-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
IMAGE = (ROOT / "Dockerfile").read_text()
MEMBERS = [name for name, one in SERVICES.items() if one.get("build") == "." and "entrypoint" not in one]
"""The services that run obox."""
OF_CLUSTER = [name for name in MEMBERS if "profiles" in SERVICES[name]]
ONCE = "service_completed_successfully"


def settings(name: str) -> dict[str, str]:
    """Return the environment of a service: that of its image, and its own."""
    given = dict(re.findall(r"(OBOX_\w+)=(\S+)", IMAGE))
    return given | {key: str(value) for key, value in SERVICES[name].get("environment", {}).items()}


def configured(name: str) -> Config:
    return load(None, settings(name))


def mounts(name: str) -> dict[str, str]:
    """Return the volume of each path in the container."""
    return {path: volume for volume, path in (text.split(":") for text in SERVICES[name].get("volumes", ()))}


def script(name: str) -> str:
    """Return what the shell of a service gets. Compose makes a single dollar sign of
    two."""
    assert SERVICES[name]["entrypoint"] == ["sh", "-euc"]
    (text,) = SERVICES[name]["command"]
    assert "$" not in text.replace("$$", "")
    return str(text.replace("$$", "$"))


def run(text: str, environ: dict[str, str]) -> None:
    """Run a script, with the commands of this checkout first in the path."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(["sh", "-euc", text], env={"PATH": path} | environ, check=True, capture_output=True, timeout=120)


def test_the_services_of_each_profile() -> None:
    without = [name for name, one in SERVICES.items() if "profiles" not in one]
    assert without == ["s3", "backend"]
    assert all(one.get("profiles", ["cluster"]) == ["cluster"] for one in SERVICES.values())
    assert OF_CLUSTER == ["backend-1", "backend-2", "proxy"]
    assert [SERVICES[name].get("command") for name in MEMBERS] == [None, None, None, ["proxy"]]
    images = {one["image"] for one in SERVICES.values() if "image" in one}
    assert all(re.fullmatch(r"[\w/]+:\d+\.\d+", image) for image in images), "pinned"
    assert "'.[cluster]'" in IMAGE, "the driver of the directory is in the image"


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_starts_and_its_ports_are_those_of_its_listeners(name: str) -> None:
    got = configured(name)
    assert got.imap
    assert got.lmtp
    assert got.http
    ports = [listen.port for section in (got.imap, got.lmtp, got.http) for listen in section.listen]
    assert f"EXPOSE {' '.join(map(str, ports))}\n" in IMAGE
    shown = [text.rsplit(":", 1) for text in SERVICES[name].get("ports", ())]
    assert [int(port) for _, port in shown] in ([], ports)
    assert all(host.startswith("127.0.0.1:") for host, _ in shown)
    assert f"http://127.0.0.1:{ports[-1]}/healthz" in IMAGE, "its health check"
    grace = int(re.fullmatch(r"(\d+)s", SERVICES[name]["stop_grace_period"])[1])
    assert grace > got.server.shutdown_timeout


@pytest.mark.parametrize("name", MEMBERS)
def test_the_bucket_of_a_member_is_there(name: str) -> None:
    storage, s3 = configured(name).storage, SERVICES["s3"]
    assert storage.endpoint_url == "http://s3:8333"
    assert "http://127.0.0.1:8333/healthz" in s3["healthcheck"]["test"]
    keys = (storage.access_key_id, storage.secret_access_key.reveal())
    assert keys == (s3["environment"]["AWS_ACCESS_KEY_ID"], s3["environment"]["AWS_SECRET_ACCESS_KEY"])
    (made,) = re.findall(r"-bucket=(\S+)", s3["command"])
    assert urlsplit(storage.url).netloc in made.split(",")
    alone = urlsplit(configured("backend").storage.url).netloc
    assert (urlsplit(storage.url).netloc == alone) == (name == "backend"), "the cluster has a bucket of its own"


def test_the_members_reach_each_other_and_the_directory() -> None:
    for name in OF_CLUSTER:
        cluster = configured(name).cluster
        assert (cluster.backend, cluster.address) == (name, name), "the name of a service is its host"
        place = read_url(cluster.directory)
        assert all(SERVICES[host]["image"].startswith("cassandra:") for host in place.hosts)
        create = SERVICES["cluster-keyspace"]["command"]
        assert create[:2] == ["cqlsh", place.hosts[0]]
        assert create[-1].startswith(f"CREATE KEYSPACE IF NOT EXISTS {place.keyspace} ")
        assert configured("cluster-init").cluster.directory == cluster.directory
        assert configured(name).tls.cert, "the link between hosts needs TLS"


def test_what_members_share_is_on_one_volume_and_the_rest_on_their_own() -> None:
    (shared,) = {mounts(name)["/etc/obox"] for name in [*OF_CLUSTER, "cluster-files", "cluster-init"]}
    for name in OF_CLUSTER:
        got = configured(name)
        files = {got.auth.passwd_file, got.cluster.secret_file, *got.tls.cert, *got.tls.key}
        assert {str(file.parent) for file in files if file} == {"/etc/obox"}
    states = [mounts(name)[str(configured(name).state_dir)] for name in MEMBERS]
    assert len({*states, shared}) == len(MEMBERS) + 1
    used = {volume for name in SERVICES for volume in mounts(name).values()}
    assert used == set(FILE["volumes"])
    hosts = [text.rsplit(":", 1)[0] for one in SERVICES.values() for text in one.get("ports", ())]
    assert len(hosts) == len(set(hosts))


def test_the_order_of_the_start_ends_with_the_proxy() -> None:
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...] = ()) -> None:
        assert name not in above, f"a circle: {above}"
        one = SERVICES[name]
        for other, how in one.get("depends_on", {}).items():
            assert "profiles" not in SERVICES[other] or "profiles" in one
            once = SERVICES[other].get("restart") == "no"
            assert how["condition"] == (ONCE if once else "service_healthy")
            assert once or "healthcheck" in SERVICES[other] or SERVICES[other].get("build") == "."
            visit(other, (*above, name))
        if name not in order:
            order.append(name)

    visit("proxy")
    assert order[-1] == "proxy"
    assert set(order) == set(SERVICES) - {"backend"}, "one command starts the cluster, and no other backend"
    assert "HEALTHCHECK " in IMAGE


@pytest.mark.needs("openssl")
def test_the_files_of_the_members_are_made_once(tmp_path: Path) -> None:
    text = script("cluster-files")
    assert "\nchown -R obox:obox .\n" in text, "root makes them, and obox reads them"
    here = text.replace("/etc/obox", str(tmp_path)).replace("chown -R obox:obox .", ":")
    run(here, {})
    got = configured("backend-1")
    assert got.cluster.secret_file is not None
    secrets, reported = read_secrets(tmp_path / got.cluster.secret_file.name)
    assert (len(secrets), reported) == (1, [])
    Certificates([tmp_path / path.name for path in got.tls.cert], [tmp_path / path.name for path in got.tls.key])
    (tmp_path / got.auth.passwd_file.name).write_text("alice:{PLAIN}secret:::::\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run(here, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_directory_is_made_once_with_both_backends(tmp_path: Path) -> None:
    environ = settings("cluster-init") | {
        "OBOX_CLUSTER__DIRECTORY": f"lmdb://{tmp_path}/directory",
        "OBOX_STATE_DIR": str(tmp_path),
    }
    run(script("cluster-init") * 2, environ)
    listed = subprocess.run(
        [str(Path(sys.executable).with_name("oboxadm")), "-f", "tab", "cluster", "backend", "list"],
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert [name for name in OF_CLUSTER if re.search(rf"^{name}\t.*\bonline\b", listed, re.M)] == OF_CLUSTER[:2]
