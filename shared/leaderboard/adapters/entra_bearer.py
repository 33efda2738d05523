"""Microsoft Entra ID tokens for Azure services, by workload identity: a pod shows the token of its
service account (RFC 7523 §2.2, `client_assertion`) and gets one for the service. No secret of ours.

Azure Kubernetes Service puts the settings and the file into pods whose service account is marked
for it; the file changes while the pod lives, so it is read each time.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

import httpx

from leaderboard.errors import TransientError
from leaderboard.settings import EntraSettings

SECONDS: Final = 5.0
EARLY_SECONDS: Final = 300.0
"""So long before its end a token is replaced; while that fails it is used on."""
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
WEB_PUBSUB_SCOPE: Final = "https://webpubsub.azure.com/.default"


class EntraBearer:
    """A `web_pubsub_gateway.Bearer`: the same token for every URL, until it ends."""

    def __init__(self, settings: EntraSettings, scope: str = WEB_PUBSUB_SCOPE) -> None:
        self._settings = settings
        self._scope = scope
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = self._ends_at = 0.0

    def __call__(self, url: str) -> str:
        """Raises TransientError where there is no token yet and the authority is away, and
        RuntimeError where it knows no such identity."""
        with self._lock:
            if time.monotonic() >= self._renew_at:
                try:
                    self._fetch()
                except TransientError:
                    if time.monotonic() >= self._ends_at:
                        raise
            return self._token

    def _fetch(self) -> None:
        settings = self._settings
        try:
            assertion = Path(settings.token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise RuntimeError(f"AZURE_FEDERATED_TOKEN_FILE: can't be read: {error}") from None
        form = {
            "client_id": settings.client_id,
            "scope": self._scope,
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion,
        }
        url = f"{settings.authority}/{settings.tenant_id}/oauth2/v2.0/token"
        try:
            answer = httpx.post(url, data=form, timeout=SECONDS)
        except httpx.HTTPError as error:
            raise TransientError(f"Entra: {type(error).__name__}: {error}") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise TransientError(f"Entra answered {answer.status_code}")
        if answer.status_code != 200:
            raise RuntimeError(
                f"Entra answered {answer.status_code} ({_reason(answer)}): are AZURE_CLIENT_ID and "
                "AZURE_TENANT_ID those of this workload's identity?"
            )
        told = answer.json()
        now, seconds = time.monotonic(), float(told["expires_in"])
        self._token = str(told["access_token"])
        self._ends_at = now + seconds
        self._renew_at = now + max(seconds - EARLY_SECONDS, seconds / 2)


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("error", "no reason"))
    except ValueError:
        return "no reason"
