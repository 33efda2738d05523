"""`ports.Revisions` over the Kubernetes API, as the pod's ServiceAccount.

Two calls are all it takes: a list by label, and a merge patch (RFC 7386) that names the version it
was decided on, so that of two who decide at once one is told (409). A client library would be many
times the rest of this function.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from leaderboard.errors import TransientError
from leaderboard.ports import Revision

GROUP: Final = "serving.knative.dev"
CALL_SECONDS: Final = 5.0
PAGE: Final = 200


class KnativeRevisions:
    """Safe for several threads. Nothing is read or connected before the first call.

    `folder` holds `token`, `namespace` and, for https, `ca.crt`, as Kubernetes mounts them. It
    renews them there, so they are read again with every call; a call is made once in a while, on
    a connection of its own."""

    def __init__(self, api_url: str, folder: Path) -> None:
        self._api_url = api_url
        self._folder = folder

    def of(self, services: Iterable[str]) -> Sequence[Revision]:
        """As `ports.Revisions`."""
        wanted = {"labelSelector": f"{GROUP}/service in ({','.join(sorted(services))})"}
        found: list[Revision] = []
        cursor = ""
        while True:
            page = {**wanted, "limit": str(PAGE), **({"continue": cursor} if cursor else {})}
            answer = self._call("GET", "", params=page)
            if answer.status_code != 200:
                raise _refused("the list of revisions", answer)
            body = _object(answer)
            found += [_revision(item) for item in body.get("items", [])]
            cursor = body.get("metadata", {}).get("continue", "")
            if not cursor:
                return found

    def annotate(self, revision: Revision, changes: Mapping[str, str | None]) -> bool:
        """As `ports.Revisions`."""
        metadata = {"resourceVersion": revision.version, "annotations": dict(changes)}
        answer = self._call(
            "PATCH",
            f"/{revision.name}",
            json={"metadata": metadata},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        if answer.status_code in (404, 409):
            return False
        if answer.status_code != 200:
            raise _refused(f"revision {revision.name}", answer)
        return True

    def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request; once more where the token was renewed while it was under way."""
        try:
            namespace = self._read("namespace")
            url = f"{self._api_url}/apis/{GROUP}/v1/namespaces/{namespace}/revisions{path}"
            headers = request.pop("headers", {})
            with httpx.Client(verify=self._trusted(), timeout=CALL_SECONDS) as client:
                token = self._read("token")
                while True:
                    known = {**headers, "Authorization": f"Bearer {token}"}
                    answer = client.request(method, url, headers=known, **request)
                    newer = self._read("token")
                    if answer.status_code != 401 or newer == token:
                        return answer
                    token = newer
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransientError(f"Kubernetes: {error}") from error

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text(encoding="utf-8").strip()

    def _trusted(self) -> ssl.SSLContext | bool:
        """The cluster's own authority and no other."""
        if not self._api_url.startswith("https:"):
            return False
        return ssl.create_default_context(cafile=str(self._folder / "ca.crt"))


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise TransientError(f"Kubernetes: {answer.request.url.host} answers no JSON object")
    return body


def _revision(item: Mapping[str, Any]) -> Revision:
    metadata = item["metadata"]
    labels = metadata.get("labels", {})
    return Revision(
        name=metadata["name"],
        service=labels.get(f"{GROUP}/service", ""),
        version=metadata["resourceVersion"],
        is_routed=labels.get(f"{GROUP}/routingState") == "active",
        annotations=metadata.get("annotations") or {},
    )


def _refused(what: str, answer: httpx.Response) -> TransientError:
    """In the API server's own words, which name the account, the verb and the resource."""
    try:
        told = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        told = answer.reason_phrase
    return TransientError(f"Kubernetes, {what}: {answer.status_code}: {told[:500]}")
