"""A witness as c2sp.org/tlog-witness describes it, for the logs of one key, in memory."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audits import cosigned, witness_key
from leaderboard.audit.notes import Checkpoint, Verifier, decode_base64
from leaderboard.audit.tree import EMPTY_ROOT, is_consistent
from leaderboard.errors import NoteError

PRIVATE = Ed25519PrivateKey.generate()
WITNESS = witness_key(PRIVATE, "witness.example/1")
SIZE_TYPE = "text/x.tlog.size"


class _Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WitnessServer

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, kind, text = self.server.decide(self.path, body)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class WitnessServer(ThreadingHTTPServer):
    """`seen` is what it has signed last, size and root by origin; `forced`, where set, its answer
    to everything."""

    def __init__(self, verifier: Verifier) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.seen: dict[str, tuple[int, bytes]] = {}
        self.forced: tuple[int, str, bytes] | None = None
        self._verifier = verifier
        self._at_s = 1_700_000_000

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/w/"

    def decide(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Status, content type, body."""
        if self.forced is not None:
            return self.forced
        assert path == "/w/add-checkpoint"
        head, _, note = body.partition(b"\n\n")
        lines = head.decode().split("\n")
        found = re.fullmatch(r"old (0|[1-9]\d*)", lines[0])
        assert found is not None
        before = int(found[1])
        origin = note.partition(b"\n")[0].decode()
        try:
            checkpoint = Checkpoint.parse(note, self._verifier.named(origin))
        except NoteError:
            return 403, "text/plain", b"not signed"
        size, root = self.seen.get(origin, (0, EMPTY_ROOT))
        if before != size or (before == checkpoint.size and checkpoint.root != root):
            return 409, SIZE_TYPE, b"%d\n" % size
        proof = [decode_base64(line) for line in lines[1:]]
        if not is_consistent(before, root, checkpoint.size, checkpoint.root, proof):
            return 422, "text/plain", b"this is another log"
        self.seen[origin] = (checkpoint.size, checkpoint.root)
        self._at_s += 1
        signed = cosigned(note, PRIVATE, WITNESS, self._at_s)
        return 200, "text/plain", signed.removeprefix(note)


@contextmanager
def witness_server(verifier: Verifier) -> Iterator[WitnessServer]:
    """One that runs."""
    server = WitnessServer(verifier)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
