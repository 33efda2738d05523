"""An issuer in a test's own hands: keys that it publishes over HTTP, and tokens that it, or
somebody who would like to be it, signs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwt
from joserfc.jwk import RSAKey

ISSUER = "https://issuer.example"
AUDIENCE = "leaderboard"
KEY = RSAKey.generate_key(2048)
NEXT_KEY = RSAKey.generate_key(2048)
FOREIGN_KEY = RSAKey.generate_key(2048)


def published(key: RSAKey, kid: str, **changes: Any) -> dict[str, Any]:
    return {**key.as_dict(private=False), "kid": kid, "use": "sig", "alg": "RS256", **changes}


class KeyServer:
    """Publishes whatever keys it is told to, or answers with an error."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [published(KEY, "k1")]
        self.status = 200
        self.raw: bytes | None = None
        self.asked = 0
        self.answering = threading.Event()
        """Cleared: it takes requests, and hangs."""
        self.answering.set()
        self.drip_seconds = 0.0
        """Between two bytes of an answer."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                server.answering.wait(20)
                body = server.raw or json.dumps({"keys": server.keys}).encode()
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    if not server.drip_seconds:
                        self.wfile.write(body)
                        return
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(server.drip_seconds)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    sound = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": now + 900,
        "iat": now,
        "sub": "alice",
        "roles": ["player"],
    }
    return {name: value for name, value in (sound | changes).items() if value is not None}


def signed(key: Any = KEY, header: dict[str, Any] | None = None, **changes: Any) -> str:
    head = {"alg": "RS256", "kid": "k1", **(header or {})}
    shown = {name: value for name, value in head.items() if value is not None}
    return jwt.encode(shown, claims(**changes), key, algorithms=["RS256", "ES256", "RS512"])


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(header: dict[str, Any], payload: Any, signature: str) -> str:
    """A token of these parts, whatever they are."""
    return f"{part(header)}.{part(payload)}.{signature}"


def hmac_signed(secret: bytes, alg: str = "HS256", **changes: Any) -> str:
    """Signed with a secret that everybody knows: the public key."""
    text = f"{part({'alg': alg, 'kid': 'k1', 'typ': 'JWT'})}.{part(claims(**changes))}"
    return f"{text}.{part(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def signed_as_it_is(header: bytes, payload: Any) -> str:
    """With the sound key, whatever the header says: no library would sign such a thing."""
    text = f"{part(header)}.{part(payload)}"
    private = KEY.private_key
    assert private is not None
    signature = private.sign(text.encode(), PKCS1v15(), SHA256())
    return f"{text}.{part(signature)}"
