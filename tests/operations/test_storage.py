"""docs/storage.md: obox needs exactly the rights of its policy, its rules work, and its
calculation of costs is right."""

from __future__ import annotations

import io
import json
import re
import select
import socket
from collections.abc import Iterator
from contextlib import redirect_stdout
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from mails import simple
from manual import BUCKET, TOP, USER, Machine, commands, live
from processes import Proxy
from servers import LIMITED_KEY_ID, S3Server, s3_client

pytestmark = pytest.mark.needs("bash", "openssl")

PAGE = (TOP / "docs/storage.md").read_text()
(POLICY,) = (json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S))

REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (/\S*) HTTP/1.1\r\n(.*?)\r\n\r\n", re.S)


class Recorder(Proxy):
    """A store that passes requests on. It records the S3 action and the key of the
    object of each."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.seen: set[tuple[str, str]] = set()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        head = b""
        try:
            while True:
                for sock in select.select([client, server], [], [])[0]:
                    data = sock.recv(65536)
                    if not data:
                        return
                    if sock is client:
                        head = head[-8192:] + data
                        for request in REQUEST.finditer(head):
                            self._note(*(part.decode("latin-1") for part in request.groups()))
                    (server if sock is client else client).sendall(data)
        except OSError:
            return
        finally:
            client.close()
            server.close()

    def _note(self, method: str, target: str, headers: str) -> None:
        url = urlsplit(target)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = parse_qs(url.query, keep_blank_values=True)
        assert bucket == BUCKET
        match method:
            case "GET" | "HEAD" if key:
                self.seen.add(("s3:GetObject", key))
            case "PUT" if key:
                self.seen.add(("s3:PutObject", key))
                if source := re.search(r"^x-amz-copy-source: /?(\S+)", headers, re.M | re.I):
                    self.seen.add(("s3:GetObject", unquote(source[1]).partition("/")[2]))
            case "DELETE" if key:
                self.seen.add(("s3:DeleteObject", key))
            case "POST" if "delete" in query:
                self.seen.add(("s3:DeleteObject", ""))
            case "GET" if "versioning" in query:
                self.seen.add(("s3:GetBucketVersioning", ""))
            case "GET" if "lifecycle" in query:
                self.seen.add(("s3:GetLifecycleConfiguration", ""))
            case "GET" if "list-type" in query:
                self.seen.add(("s3:ListBucket", ""))
            case _:
                self.seen.add((f"{method} {target}", key))


@pytest.fixture
def recorder(seaweedfs: S3Server) -> Iterator[Recorder]:
    host, port = seaweedfs.endpoint_url.removeprefix("http://").split(":")
    proxy = Recorder((host, int(port)))
    proxy.join()
    yield proxy
    proxy.cut()


def test_the_policy_is_what_a_backend_asks_for(machine: Machine, recorder: Recorder) -> None:
    """A backend lives from its first start to the deletion of a user, with rights in
    this bucket only."""
    limited = {"AWS_ACCESS_KEY_ID": LIMITED_KEY_ID, "OBOX_STORAGE__ENDPOINT_URL": f"http://127.0.0.1:{recorder.port}"}
    machine.environ |= {**limited, "OBOX_STORAGE__DELETE_DELAY": "0s"}
    machine.certificate("/etc/obox")
    out = machine.run(commands("operations.md", "install"))
    assert "mail1.toml" in out, "where each value came from"
    machine.run("systemctl is-active obox-backend@mail1")
    out += machine.run(commands("storage.md", "storage check"))
    live(machine)
    machine.run(commands("operations.md", "maintenance"))
    machine.run("rm -rf /var/lib/obox/mail1")
    machine.run(commands("operations.md", "maintenance, afterwards"))
    machine.run(commands("operations.md", "delete a user"))
    assert not [key for key in machine.listed() if USER in key]
    assert "wrong" not in out
    allowed = {action for statement in POLICY["Statement"] for action in statement["Action"]}
    assert {action for action, _ in recorder.seen} == allowed
    objects = POLICY["Statement"][0]["Resource"].removeprefix(f"arn:aws:s3:::{BUCKET}/").removesuffix("*")
    assert all(key.startswith(objects) for _, key in recorder.seen if key)


def test_rights_end_at_the_bucket(seaweedfs: S3Server, machine: Machine) -> None:
    machine.s3.create_bucket(Bucket="others")
    machine.s3.put_object(Bucket="others", Key="secret", Body=b"1")
    client = s3_client(S3Server(seaweedfs.endpoint_url, LIMITED_KEY_ID, seaweedfs.secret_access_key))
    for attempt in (
        lambda: client.get_object(Bucket="others", Key="secret"),
        lambda: client.put_object(Bucket="others", Key="new", Body=b""),
        lambda: client.list_objects_v2(Bucket="others"),
        lambda: client.delete_object(Bucket="others", Key="secret"),
    ):
        with pytest.raises(Exception, match=r"AccessDenied|Forbidden"):
            attempt()


def test_rules_leave_mails_alone_and_versions_bring_them_back(machine: Machine) -> None:
    machine.certificate("/etc/obox")
    machine.environ["OBOX_STORAGE__DELETE_DELAY"] = "0s"
    machine.run(re.sub(r"^obox(adm)? .*(config|check).*\n", "", commands("operations.md", "install"), flags=re.M))
    out = machine.run(commands("storage.md", "lifecycle"))
    try:
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
        assert rows["lifecycle"][:3] == ["ok", "2", "rules"]
        assert rows["versioning"][:2] == ["ok", "on"]
        machine.wait_serving()
        assert machine.deliver(simple(1)) == 250
        (key,) = (key for key in machine.listed() if "/m/" in key)
        machine.run(commands("operations.md", "delete a user"))
        assert key not in machine.listed()
        versions = machine.s3.list_object_versions(Bucket=BUCKET, Prefix=f"obox/{key}")
        (marker,) = versions["DeleteMarkers"]
        machine.s3.delete_object(Bucket=BUCKET, Key=marker["Key"], VersionId=marker["VersionId"])
        assert key in machine.listed()
    finally:
        machine.s3.delete_bucket_lifecycle(Bucket=BUCKET)
        machine.s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"})


def test_the_sum_is_what_it_says() -> None:
    code, shown = re.search(r"^```python\n(.*?)^```\n\n```\n(.*?)^```$", PAGE, re.M | re.S).groups()
    out = io.StringIO()
    with redirect_stdout(out):
        exec(code, {})
    assert out.getvalue() == shown
