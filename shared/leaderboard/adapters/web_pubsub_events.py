"""What Azure Web PubSub asks and tells its event handler: CloudEvents over HTTP, binary mode, as
its reference "CloudEvents extension for event handlers" has them.

`connect` waits for the answer, which alone decides about a socket: who it is of and which groups
(our channels) it is in. What `connect` answers as the connection's state comes back with
`connected` and `disconnected`. A client that speaks is cut: players listen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from leaderboard.errors import Refusal, RefusedError, UnauthenticatedError
from leaderboard.model import PlayerId, TournamentId
from leaderboard.ports import Grant

CONNECT: Final = "azure.webpubsub.sys.connect"
CONNECTED: Final = "azure.webpubsub.sys.connected"
DISCONNECTED: Final = "azure.webpubsub.sys.disconnected"
USER_PREFIX: Final = "azure.webpubsub.user."
MAX_SIGNATURES: Final = 4


@dataclass(frozen=True, slots=True)
class Connecting:
    """A client wants a socket. `address` is empty where the service does not tell it."""

    ticket: str
    address: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The socket of this grant is open."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The socket of this grant has ended, whoever ended it."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Spoken:
    """A client has sent something; any answer other than 2xx cuts it."""


class WebPubSubEvents:
    """Reads the events of one hub, signed with any of its two access keys."""

    def __init__(self, service_host: str, hub: str, keys: Sequence[str]) -> None:
        self._host = service_host
        self._hub = hub.lower()
        self._keys = [key.encode() for key in keys]

    def allowed_origin(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The answer to the service's question whether it may send events here (CloudEvents web
        hooks §4): it names our own service, so any other one may not."""
        if not headers.get("WebHook-Request-Origin"):
            raise RefusedError(Refusal.SCHEMA, "WebHook-Request-Origin is missing")
        return {"WebHook-Allowed-Origin": self._host}

    def read(
        self, headers: Mapping[str, str], body: bytes
    ) -> Connecting | Connected | Disconnected | Spoken:
        """The event of a request. Raises UnauthenticatedError for one that the service did not
        sign, and RefusedError for one that it would not send."""
        self._check_signature(headers)
        if headers.get("ce-hub", "").lower() != self._hub:
            raise RefusedError(Refusal.SCHEMA, "ce-hub is another hub")
        kind = headers.get("ce-type", "")
        if kind == CONNECT:
            return _connecting(body)
        if kind == CONNECTED:
            return Connected(_grant(headers.get("ce-connectionState", "")))
        if kind == DISCONNECTED:
            return Disconnected(_grant(headers.get("ce-connectionState", "")))
        if kind.startswith(USER_PREFIX):
            return Spoken()
        raise RefusedError(Refusal.UNKNOWN_TYPE, "ce-type is none that Web PubSub has")

    def _check_signature(self, headers: Mapping[str, str]) -> None:
        """`sha256=…,sha256=…`, one for each access key: one that we know has to be there, so keys
        can be changed one after the other."""
        connection_id = headers.get("ce-connectionId", "")
        told = headers.get("ce-signature", "").split(",")
        if not connection_id or len(told) > MAX_SIGNATURES:
            raise UnauthenticatedError("the event is not signed")
        ours = [signature(key, connection_id) for key in self._keys]
        # Every pair is compared, so the time tells nothing.
        found = [hmac.compare_digest(a.strip().encode(), b.encode()) for a in told for b in ours]
        if not any(found):
            raise UnauthenticatedError("the event is not signed with a key of this service")


def signature(key: bytes, connection_id: str) -> str:
    """What the service says of itself: the HMAC of the connection's id by an access key."""
    return "sha256=" + hmac.new(key, connection_id.encode(), hashlib.sha256).hexdigest()


def admission(
    grant: Grant, channels: Sequence[str]
) -> tuple[Mapping[str, object], Mapping[str, str]]:
    """Body and headers that let the socket of this grant in, to these channels and no others.

    No role: a client may join no group by itself and publish to none."""
    state = {
        "tournament_id": grant.tournament_id,
        "player_id": grant.player_id,
        "connection_id": grant.connection_id,
        "expires_at_ms": grant.expires_at_ms,
    }
    coded = base64.b64encode(json.dumps(state).encode()).decode()
    body = {"userId": grant.player_id, "groups": list(channels), "roles": []}
    return body, {"ce-connectionState": coded}


def _grant(state: str) -> Grant:
    try:
        told = json.loads(base64.b64decode(state, validate=True))
        return Grant(
            TournamentId(str(told["tournament_id"])),
            PlayerId(str(told["player_id"])),
            str(told["connection_id"]),
            int(told["expires_at_ms"]),
        )
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise RefusedError(Refusal.SCHEMA, "ce-connectionState is none of ours") from None


def _connecting(body: bytes) -> Connecting:
    try:
        told = json.loads(body)
    except ValueError:
        raise RefusedError(Refusal.NOT_JSON, "the body is no JSON") from None
    if not isinstance(told, dict):
        raise RefusedError(Refusal.SCHEMA, "the body is no object")
    query, headers = _lowered(told.get("query")), _lowered(told.get("headers"))
    # Proxies append what they see: the last one is the service's own.
    forwarded = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return Connecting(query.get("ticket", ""), forwarded, headers.get("user-agent", ""))


def _lowered(found: Any) -> dict[str, str]:
    """The last value of each name: the service tells all as lists."""
    if not isinstance(found, dict):
        return {}
    return {
        name.lower(): str(values[-1])
        for name, values in found.items()
        if isinstance(values, list) and values
    }
