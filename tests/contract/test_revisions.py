"""Revisions of Knative Services over HTTP, against a server that answers as Kubernetes does."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api_server import NAMESPACE, ApiServer, api_server
from leaderboard.adapters.knative_revisions import KnativeRevisions
from leaderboard.errors import TransientError
from leaderboard.prewarming import MIN_SCALE
from leaderboard.stack.process import free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path / "account") as started:
        started.put("query-00001", "query", {MIN_SCALE: "2"}, "reserve")
        started.put("query-00002", "query", {MIN_SCALE: "2", "a": "b"})
        started.put("erase-00001", "erase", {})
        yield started


@pytest.fixture
def revisions(server: ApiServer) -> KnativeRevisions:
    return KnativeRevisions(server.url, server.folder)


def test_revisions_are_those_of_the_services_with_what_is_needed_of_them(
    revisions: KnativeRevisions,
) -> None:
    older, newer = revisions.of(["query", "on-connect"])
    assert (older.name, older.service, older.is_routed) == ("query-00001", "query", False)
    assert (newer.name, newer.is_routed) == ("query-00002", True)
    assert newer.annotations == {MIN_SCALE: "2", "a": "b"}
    assert revisions.of(["on-connect"]) == []


def test_long_list_comes_in_pages(server: ApiServer, revisions: KnativeRevisions) -> None:
    server.page_size = 3
    for number in range(3, 11):
        server.put(f"query-{number:05}", "query", {})
    assert [one.name for one in revisions.of(["query"])] == [
        f"query-{number:05}" for number in range(1, 11)
    ]
    assert len(server.requests) == 4


def test_annotations_are_set_and_removed_and_the_others_stay(
    server: ApiServer, revisions: KnativeRevisions
) -> None:
    (one,) = (found for found in revisions.of(["query"]) if found.is_routed)
    assert revisions.annotate(one, {MIN_SCALE: None, "c": "d"})
    assert server.annotations(one.name) == {"a": "b", "c": "d"}
    assert server.revisions[one.name]["spec"] == {"timeoutSeconds": 60}


def test_change_of_an_older_version_is_not_made(
    server: ApiServer, revisions: KnativeRevisions
) -> None:
    first, second = revisions.of(["query"])
    server.edit(first.name, {"x": "y"})
    del server.revisions[second.name]
    assert not revisions.annotate(first, {MIN_SCALE: "9"})
    assert not revisions.annotate(second, {MIN_SCALE: "9"})
    assert server.annotations(first.name) == {MIN_SCALE: "2", "x": "y"}


def test_token_that_was_renewed_is_read_again(
    server: ApiServer, revisions: KnativeRevisions
) -> None:
    assert len(revisions.of(["query"])) == 2
    server.rotate()
    assert len(revisions.of(["query"])) == 2
    before = len(server.requests)
    server.before_answer.append(server.rotate)  # renewed while the request is under way
    assert len(revisions.of(["query"])) == 2
    assert len(server.requests) == before + 2


def test_token_that_is_not_believed_is_told_and_not_tried_for_ever(
    server: ApiServer, revisions: KnativeRevisions
) -> None:
    server.token = "token-9"
    with pytest.raises(TransientError, match="401: Unauthorized"):
        revisions.of(["query"])
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_refusal_is_told_in_the_servers_words(
    server: ApiServer, revisions: KnativeRevisions, status: int
) -> None:
    words = f'revisions is forbidden: User "system:serviceaccount:{NAMESPACE}:x" cannot list'
    found = revisions.of(["query"])
    server.refusals["GET"] = server.refusals["PATCH query-00002"] = (status, words)
    with pytest.raises(TransientError, match=f"list of revisions: {status}: {words}"):
        revisions.of(["query"])
    with pytest.raises(TransientError, match=f"revision query-00002: {status}"):
        revisions.annotate(found[1], {MIN_SCALE: "10"})


def test_server_that_is_away_and_account_that_is_missing_are_told(
    server: ApiServer, tmp_path: Path
) -> None:
    away = KnativeRevisions(f"http://127.0.0.1:{free_port()}", server.folder)
    with pytest.raises(TransientError, match=r"Kubernetes: .*refused"):
        away.of(["query"])
    with pytest.raises(TransientError, match=r"No such file.*nowhere"):
        KnativeRevisions(server.url, tmp_path / "nowhere").of(["query"])


class _NoJson(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *args: Any) -> None:
        pass


def _certificate(folder: Path, name: str) -> None:
    """A self-signed one for loopback, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    own = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(own, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, *plain))
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))


def test_only_the_clusters_own_authority_is_trusted(server: ApiServer, tmp_path: Path) -> None:
    """And what answers something else than JSON is no API server."""
    for name in ("server", "other"):
        _certificate(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    listening = HTTPServer(("127.0.0.1", 0), _NoJson)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
    thread.start()
    revisions = KnativeRevisions(f"https://127.0.0.1:{listening.server_port}", server.folder)
    try:
        for name, told in (("other", "certificate verify failed"), ("server", "no JSON object")):
            (server.folder / "ca.crt").write_bytes((tmp_path / f"{name}.crt").read_bytes())
            with pytest.raises(TransientError, match=told):
                revisions.of(["query"])
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
