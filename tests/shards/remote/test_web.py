"""Whatever an HTTP server answers, its client gets the whole file or an error, in bounded time and memory."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.config import SourceConfig
from shards.remote.errors import ForbiddenError, SourceError
from shards.remote.fetch import fetch, fetch_bytes
from shards.remote.sink import Sink
from tests.shards.servers import HOSTILE, FaultyServer, faulty_server, framed, head

DATA = b"a line of a file\n" * 3000
QUICK = SourceConfig(attempts=2, first_wait_seconds=0.0, timeout_seconds=0.3, min_kib_per_second=1000.0)
PATIENT = dataclasses.replace(QUICK, timeout_seconds=2.0)  # no pause of a busy server is taken for a silence


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "file").write_bytes(DATA)
    with faulty_server(tmp_path) as running:
        yield running


@pytest.mark.parametrize("fault", [*HOSTILE, "drop", "reset", "cut", "500", "501", "599"])
def test_a_malformed_answer_is_a_passing_fault(server: FaultyServer, fault: str) -> None:
    server.faults["/file"].append(fault)
    server.faults["/file?again"].extend([fault] * 5)
    began = time.monotonic()
    assert fetch_bytes(f"{server.url}/file", QUICK, limit=1 << 20) == DATA
    assert server.requests["/file"] == 2
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_server_that_only_answers_so_leads_to_an_error_that_names_the_url(server: FaultyServer, fault: str) -> None:
    for path in ("/file", "/file?again"):
        server.faults[path].extend([fault] * 20)
    began = time.monotonic()
    with pytest.raises(SourceError, match=f"{server.url}/file: .*; gave up after 2 attempts") as caught:
        fetch_bytes(f"{server.url}/file", QUICK, limit=1 << 20)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - began < 30


def test_the_whole_time_is_limited_by_the_bytes_received(server: FaultyServer) -> None:
    server.faults["/file"].append("slow")  # in 20 pieces, 0.02 s apart
    assert fetch_bytes(f"{server.url}/file", QUICK, limit=1 << 20) == DATA
    server.faults["/file"].extend(["drip"] * 2)
    with pytest.raises(SourceError, match=r"too slow: \d+ bytes in .* s \(min_kib_per_second = 1000 after 2 s\)"):
        fetch_bytes(f"{server.url}/file", PATIENT, limit=1 << 20)


def test_a_known_size_is_enforced_before_the_body_is_read(server: FaultyServer, tmp_path: Path) -> None:
    with (tmp_path / "copy").open("w+b") as handle:
        for size, message in ((len(DATA) + 1, "the manifest says"), (5, "the manifest says")):
            with pytest.raises(SourceError, match=message):
                fetch(f"{server.url}/file", Sink(handle, sha256="0" * 64, size=size), QUICK)
        assert handle.seek(0, 2) == 0
    with pytest.raises(SourceError, match="more than the 100 bytes that are accepted"):
        fetch_bytes(f"{server.url}/file", QUICK, limit=100)


def test_redirects_to_other_paths_and_hosts_are_followed(server: FaultyServer) -> None:
    (server.root / "old").touch()
    for target in ("/file", server.url.replace("127.0.0.1", "localhost") + "/file"):
        moved = head("307 Temporary Redirect", Location=target)
        server.choose = lambda path, moved=moved: (lambda _: iter((moved,))) if path == "/old" else ""
        assert fetch_bytes(f"{server.url}/old", QUICK) == DATA


def test_chunked_bodies_and_odd_but_valid_headers_are_read(server: FaultyServer) -> None:
    answers = (
        lambda data: iter(
            (head(Transfer_Encoding="Chunked"), b"%x;ext=1\r\n%s\r\n0\r\nA: b\r\n\r\n" % (len(data), data))
        ),
        lambda data: framed(data, content_length=f"{len(data)}\r\nContent-Length: {len(data)}"),
        lambda data: framed(data, Content_Encoding="identity"),
    )
    for answer in answers:
        server.choose = lambda path, answer=answer: answer
        assert fetch_bytes(f"{server.url}/file", QUICK) == DATA


def test_client_errors_are_final(server: FaultyServer) -> None:
    for status, kind in (("403", ForbiddenError), ("401", SourceError), ("400", SourceError)):
        server.faults["/file"].append(status)
        with pytest.raises(kind, match=f"{server.url}/file: HTTP {status}"):
            fetch_bytes(f"{server.url}/file", QUICK)
    assert server.requests["/file"] == 3


@pytest.fixture
def tls_server(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyServer:
    """The same server behind TLS, with a certificate that this process trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    server.encrypt(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return server


def test_https_keeps_the_same_limits_and_checks_the_certificate(
    tls_server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{tls_server.url}/file"
    assert url.startswith("https://") and fetch_bytes(url, QUICK) == DATA
    for fault in ("length short", "chunk size", "drop", "cut", "surplus", "endless"):
        tls_server.faults["/file"].append(fault)
        assert fetch_bytes(url, QUICK, limit=1 << 20) == DATA
    tls_server.faults["/file"].extend(["drip"] * 2)
    with pytest.raises(SourceError, match="too slow"):
        fetch_bytes(url, PATIENT)
    plain = head("302 Found", Location=url.replace("https:", "http:"))
    tls_server.choose = lambda path: lambda _: iter((plain,))
    with pytest.raises(SourceError, match=r"a redirect from https to 'http://.*not encrypted; gave up"):
        fetch_bytes(url, QUICK)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_bytes(url, QUICK)
