"""The dry run of a site: folders, data, versions, start-up kit, server and one epoch."""

# ruff: noqa: E402 - without NVFlare, an optional extra, the module is skipped before it is needed
from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections import namedtuple
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from conftest import BUNDLE
from federated_data import SMALL, files_in, small_weights, write_site

pytest.importorskip("nvflare")
x509 = pytest.importorskip("cryptography.x509")
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scripts.federated import kit_check, site_check
from scripts.federated.job import main
from scripts.federated.kit import LOG_STREAMER, prepare_kit
from scripts.federated.kit_check import check_kit, try_server
from scripts.federated.site_check import Line, check_site, pins

NOW = datetime.now(UTC)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """A project's own authority, as `nvflare provision` makes one."""

    def __init__(self, name: str = "head_pose", days: int = 360) -> None:
        self.name, self.key = named(name), ec.generate_private_key(ec.SECP256R1())
        self.root = self._sign(self.name, self.key.public_key(), days, root=True)

    def _sign(self, name, key, days, root=False):
        return (
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(self.name).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=400)).not_valid_after(NOW + timedelta(days=days))
            .add_extension(x509.BasicConstraints(root, None), critical=True)
            .sign(self.key, hashes.SHA256())
        )  # fmt: skip

    def issue(self, folder: Path, name: str, role: str = "client", days: int = 360) -> Path:
        """Write role.crt, role.key and rootCA.pem."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(named(name), key.public_key(), days)
        for file, content in (("rootCA.pem", self.root), (f"{role}.crt", certificate)):
            (folder / file).write_bytes(content.public_bytes(serialization.Encoding.PEM))
        (folder / f"{role}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (folder / f"{role}.key").chmod(0o600)
        return folder


@contextmanager
def listening(serve):
    """A port of this machine whose connections ``serve`` gets, each in turn."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return  # closed: the test is over
                # the other side goes away, as some of these tests want it
                with connection, suppress(OSError):
                    serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield "127.0.0.1", server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def tls_server(folder: Path, newest=ssl.TLSVersion.TLSv1_3, waits=True):
    """As NVFlare's: who connects must show a certificate of the project; then it waits."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    context.load_verify_locations(folder / "rootCA.pem")

    def serve(connection):
        with context.wrap_socket(connection, server_side=True) as secure:
            if waits:
                secure.recv(1)

    return listening(serve)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def quick(monkeypatch):
    """Silence of a quarter of a second is enough on this machine."""
    monkeypatch.setattr(kit_check, "ANSWER_S", 0.25)


@pytest.fixture
def kit(authority, tmp_path):
    """A prepared start-up kit of site-1, as small as it can be; no server runs."""
    folder = tmp_path / "kit"
    authority.issue(folder / "startup", "site-1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        target = f"127.0.0.1:{free.getsockname()[1]}"
    server = {"service": {"target": target}, "identity": "fl.example.org"}
    write(folder / "startup/fed_client.json", {"servers": [server]})
    components = [{"id": "site_log_streamer", "path": LOG_STREAMER}, {"id": "a", "path": "x.Y"}]
    resources = {"class_allow_list": ["nvflare.A"], "components": components}
    write(folder / "local/resources.json.default", resources)
    roles = {"project_admin": "any", "lead": {"byoc": "any", "submit_job": "any"}}
    write(folder / "local/authorization.json.default", {"permissions": roles})
    prepare_kit(folder)
    return folder


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def found(lines, level=None):
    """Texts of the lines of a level, or of all."""
    return [line.text for line in lines if level in (None, line.level)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("check") / "data", training=2, validation=1)


@pytest.fixture
def site_file(data, tmp_path):
    settings = {"dataset_dir": str(data), "output_dir": "out/site", **SMALL}
    return write(tmp_path / "site.json", settings)


def test_a_site_that_could_take_part(site_file, kit, authority, data, quick, tmp_path, capsys):
    """All of the command line at once; nothing is left behind but what was there."""
    torch.save(small_weights(), tmp_path / "start.pt")
    place = kit / "startup/fed_client.json"
    kept = files_in(data), set(tmp_path.iterdir())
    temporary = set(Path(os.environ.get("TMPDIR", "/tmp")).iterdir())
    with tls_server(authority.issue(tmp_path / "kit", "fl.example.org", "server")) as address:
        content = json.loads(place.read_text())
        content["servers"][0]["service"]["target"] = f"127.0.0.1:{address[1]}"
        write(place, content)
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "check",
                    "--site",
                    str(site_file),
                    "--kit",
                    str(kit),
                    "--local_epochs",
                    "3",
                    "--init_path",
                    str(tmp_path / "start.pt"),
                ]
            )
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0, lines
    assert not [line for line in lines if line.startswith("wrong")]
    text = "\n".join(lines)
    for words in (
        "ok: output_dir",
        "2 training and 1 validation volumes, 0 errors",
        "warning: data set",  # one validation volume
        "nvflare 2",
        "is prepared",
        "certificate of CN=site-1, issued by CN=head_pose, valid until",
        "answers as fl.example.org, and takes this site's certificate",
        "a round of 3 local epochs takes about",
    ):
        assert words in text
    assert lines[-1].startswith("This site can take part: nothing wrong, ")
    assert (files_in(data), set(tmp_path.iterdir())) == kept
    left = set(Path(os.environ.get("TMPDIR", "/tmp")).iterdir()) - temporary
    assert not [path for path in left if (path / "dataset.json").exists()]


def test_it_goes_on_after_what_is_wrong_and_says_so_at_the_end(tmp_path, capsys):
    (tmp_path / "site.json").write_text("{")
    with pytest.raises(SystemExit) as end:
        main(["check", "--site", str(tmp_path / "site.json"), "--kit", str(tmp_path / "no_kit")])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 1
    wrong = [line for line in lines if line.startswith("wrong: ")]
    assert len(wrong) == 2
    assert "site.json" in wrong[0]  # it stays at the site, so it may name its files
    assert "not the start-up kit of a site" in wrong[1]
    assert "warning: training was not tried" in lines[-2]
    assert lines[-1].startswith("This site cannot take part yet: 2 wrong")


def test_what_is_left_out_is_said(site_file):
    warnings = found(check_site(site_file, training=False), "warning")
    assert any(text.startswith("the server was not tried") for text in warnings)
    assert "training was not tried (--skip_training)" in warnings


def test_no_room_on_the_disk(site_file, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 300 << 20))
    (wrong,) = found(check_site(site_file, training=False), "wrong")
    assert wrong == "0.3 GiB of disk free at output_dir, a job needs 1: make room there"


def test_an_output_folder_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    settings = {"dataset_dir": str(data), "output_dir": "file/out"}
    lines = check_site(write(tmp_path / "site.json", settings), training=False)
    (wrong,) = found(lines, "wrong")
    assert "output_dir" in wrong
    assert f"cannot be written (Not a directory at {tmp_path / 'file'})" in wrong


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "no such file"),
        ({"validation": []}, "no validation volumes, the site would be refused"),
        ({"training": [{"image": "gone.nii.gz"}]}, "1 errors"),
    ],
)
def test_data_that_a_federation_would_refuse(data, change, words, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    if change is None:
        (folder / "dataset.json").unlink()
    else:
        content = json.loads((folder / "dataset.json").read_text()) | change
        write(folder / "dataset.json", content)
    settings = {"dataset_dir": "data", "output_dir": "out"}
    lines = list(check_site(write(tmp_path / "site.json", settings)))
    (wrong,) = found(lines, "wrong")
    assert words in wrong
    # the training is not tried on them
    assert lines[-1] == Line("warning", "training was not tried: first the data set must be right")


def test_packages_that_are_others_or_not_there(site_file, monkeypatch):
    own = site_check.version

    def version(package):
        if package == "nvflare":
            raise site_check.PackageNotFoundError
        return "0.1+cpu" if package == "e3nn" else own(package)

    monkeypatch.setattr(site_check, "version", version)
    lines = list(check_site(site_file, training=False))
    (wrong,) = found(lines, "wrong")
    assert wrong.startswith("nvflare is not installed: make federated-setup")
    (other,) = (text for text in found(lines, "warning") if "pinned" in text)
    assert f"e3nn 0.1+cpu, pinned is {pins()[0]['e3nn']}" in other
    assert "torch" not in other


def test_without_nvflare_the_check_alone_runs(site_file):
    """As after `make setup`, and in a process of its own: the imports are what is tested."""
    code = (
        "import sys, importlib.util, runpy; found = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda n, *a: None if n == 'nvflare' else found(n, *a);"
        "sys.modules['nvflare'] = None; runpy.run_module('scripts.federated.job', None, '__main__')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        [*command, "check", "--site", str(site_file), "--kit", "K", "--skip_training"],
        cwd=BUNDLE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "warning: start-up kit not looked at, and server not tried: nvflare" in done.stdout
    assert "Traceback" not in done.stderr
    assert site_check.without_nvflare(["export"]) == 2


def test_stopping_it_is_told_plainly(site_file, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(site_check, "check_dataset", stop)
    with pytest.raises(SystemExit) as end:
        main(["check", "--site", str(site_file)])
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_large_set_is_extrapolated_and_a_failing_one_explained(site_file, monkeypatch, tmp_path):
    """Without the training itself: times by a clock of the test."""
    clock = iter([0.0, 2.0, 5.0, 15.0] * 2)

    class Site:
        def __init__(self, _, settings, plan):
            self.volumes = {"training": 1, "validation": 1}
            self.folder = Path(settings["output_dir"])
            assert tmp_path not in self.folder.parents
            listed = json.loads((self.folder.parent / "dataset.json").read_text())
            assert [len(listed[s]) for s in ("training", "validation")] == [1, 1]
            assert all(Path(entry["image"]).exists() for entry in listed["training"])

        def check_weights(self, _):
            pass

        def evaluate(self, *_):
            pass

        def train(self, *_):
            pass

    monkeypatch.setattr(site_check, "FederatedSite", Site)
    monkeypatch.setattr(site_check, "TRIED", {"training": 1, "validation": 10})
    monkeypatch.setattr(site_check.time, "monotonic", lambda: next(clock))
    *_, last = check_site(site_file)
    assert "start 4 s, evaluation 3 s, one epoch 20 s" in last.text
    assert "(estimated from 1 of 2 training volumes)" in last.text
    assert "a round of 1 local epochs takes about 23 s" in last.text

    def fail(*_):
        raise site_check.SiteError("no head", "at /srv")

    monkeypatch.setattr(Site, "train", fail)
    *_, last = check_site(site_file)
    assert last == Line("wrong", "training: no head; at /srv")


def as_it_came(kit, name):
    shutil.copy(kit / f"local/{name}.json.default", kit / f"local/{name}.json")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda kit: (kit / "local/resources.json").unlink(), "there is no local/resources.json"),
        (
            lambda kit: as_it_came(kit, "resources"),
            "it sends the site's error log to the server, it does not allow this bundle's classes",
        ),
        (lambda kit: as_it_came(kit, "authorization"), "it allows byoc"),
        (lambda kit: (kit / "local/resources.json").write_text("{"), "is not whole"),
        (lambda kit: (kit / "startup/fed_client.json").unlink(), "not the start-up kit of a site"),
        (lambda kit: write(kit / "startup/fed_client.json", {"servers": []}), "names no server"),
        (lambda kit: (kit / "startup/client.crt").write_text("-"), "ask for the kit again"),
    ],
)
def test_a_kit_that_is_not_ready(kit, break_it, words):
    assert len(found(check_kit(kit), "wrong")) == 1  # its server does not run
    break_it(kit)
    assert words in found(check_kit(kit), "wrong")[0]


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [
        (200, "ok", "valid until"),
        (20, "warning", "19 days from now: ask whoever runs the server for a new kit"),
        (-2, "wrong", "it has expired"),
    ],
)
def test_a_certificate_is_told_of_before_it_ends(kit, authority, days, level, words):
    authority.issue(kit / "startup", "site-1", days=days)
    (line,) = (line for line in check_kit(kit) if line.text.startswith("certificate of"))
    assert line.level == level
    assert words in line.text


def test_a_certificate_of_an_authority_that_ends(kit):
    """That of the site alone would be valid for a year."""
    Authority(days=5).issue(kit / "startup", "site-1")
    (line,) = (line for line in check_kit(kit) if line.text.startswith("certificate of"))
    assert line.level == "warning"
    assert "4 days from now" in line.text


def test_a_key_that_others_can_read(kit):
    (kit / "startup/client.key").chmod(0o644)
    assert any("chmod 600" in text for text in found(check_kit(kit), "warning"))


def test_a_certificate_and_a_root_of_two_projects(kit, tmp_path):
    other = Authority().issue(tmp_path / "other", "site-1")
    shutil.copy(other / "rootCA.pem", kit / "startup")
    assert any("was not issued by" in text for text in found(check_kit(kit), "wrong"))


def server_says(kit, address, identity="fl.example.org"):
    line = try_server(address, identity, kit / "startup")
    return line.level, line.text


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_refused_and_foreign_are_told_apart(kit, authority, quick, newest, tmp_path):
    """With TLS 1.3 a refusal comes after the handshake, with 1.2 in it."""
    with tls_server(
        authority.issue(tmp_path / "own", "fl.example.org", "server"), newest
    ) as address:
        assert server_says(kit, address)[0] == "ok"
        authority.issue(kit / "startup", "site-1", days=-1)
        level, text = server_says(kit, address)
        assert level == "wrong"
        assert "is reachable, but refuses this site's certificate" in text
    authority.issue(kit / "startup", "site-1")
    other = Authority().issue(tmp_path / "foreign", "fl.example.org", "server")
    with tls_server(other, newest) as address:
        level, text = server_says(kit, address)
        assert level == "wrong"
        assert "is not the project's server" in text
        assert "opens TLS" in text
    site = authority.issue(tmp_path / "site-2", "site-2", "server")
    with tls_server(site, newest) as address:
        level, text = server_says(kit, address)
        assert level == "wrong"
        assert "not the project's server fl.example.org: it shows the certificate of site-2" in text


def test_a_server_that_hangs_up_after_the_handshake_refuses(kit, authority, quick, tmp_path):
    """So does NVFlare's with a certificate of another project: it says nothing and is gone."""
    folder = authority.issue(tmp_path / "own", "fl.example.org", "server")
    with tls_server(folder, waits=False) as address:
        level, text = server_says(kit, address)
    assert level == "wrong"
    assert "refuses this site's certificate" in text


def test_what_is_no_tls_server(kit, monkeypatch):
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")) as address:
        level, text = server_says(kit, address)
    assert level == "wrong"
    assert "is not the project's server: it does not speak TLS" in text
    monkeypatch.setattr(kit_check, "TIMEOUT_S", 0.3)
    with listening(lambda connection: connection.recv(10**6) and connection.recv(1)) as address:
        level, text = server_says(kit, address)
    assert level == "wrong"
    assert "does not begin TLS within 0.3 s" in text


def test_a_server_that_is_not_there(kit, monkeypatch):
    address = "127.0.0.1", 9
    assert "the server is not running, or a firewall refuses" in server_says(kit, address)[1]
    for error, words in (
        (TimeoutError(), "no answer within 5 s: a firewall must let this machine out"),
        (socket.gaierror(-2, "Name or service not known"), "its name is not known here"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(socket, "create_connection", fail)
        level, text = server_says(kit, address)
        assert level == "wrong"
        assert words in text
