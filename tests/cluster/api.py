"""A cluster, by `kubectl`: refused where it may be somebody's, read, written to, waited for."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import yaml

T = TypeVar("T")
Manifest = dict[str, Any]
ANY: Final = "CLUSTER_TEST_ANY"
CALL_SECONDS: Final = 60
LOOK_SECONDS: Final = 0.5


class NotThisClusterError(Exception):
    """Nothing is done to this cluster; the message says why, and what to do."""


class RefusedError(Exception):
    """The API server's own words."""


def chosen(environ: Mapping[str, str]) -> str:
    """The path in KUBECONFIG. Raises NotThisClusterError unless it is set and its context's server
    is on this machine, or somebody has said that it may be any."""
    path = environ.get("KUBECONFIG")
    if not path:
        raise NotThisClusterError(
            "KUBECONFIG is not set: name the file of a cluster that may be filled and emptied"
        )
    try:
        server = _server_of(path)
    except (OSError, KeyError, TypeError, StopIteration, yaml.YAMLError) as error:
        raise NotThisClusterError(
            f"KUBECONFIG: {path} can't be read, or has no current context ({error!r})"
        ) from None
    host = urlsplit(server).hostname or ""
    if not _is_loopback(host) and environ.get(ANY) != "1":
        raise NotThisClusterError(
            f"KUBECONFIG: {server} is not on this machine, and this test makes and deletes "
            f"namespaces and may lift every limit there: set {ANY}=1 if it may have it"
        )
    return path


def _server_of(path: str) -> str:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - as kubectl is given it
        config = yaml.safe_load(file)
    named = config["current-context"]
    context = next(one["context"] for one in config["contexts"] if one["name"] == named)
    clusters = (one["cluster"] for one in config["clusters"] if one["name"] == context["cluster"])
    server: str = next(clusters)["server"]
    return server


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Cluster:
    """One cluster, as whom KUBECONFIG says: its administrator."""

    kubeconfig: str
    program: str = "kubectl"

    def call(self, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """One call to its end, whatever comes of it."""
        try:
            return subprocess.run(
                [self.program, *words], env={**os.environ, "KUBECONFIG": self.kubeconfig},
                input=given, capture_output=True, text=True, check=False, timeout=CALL_SECONDS,
            )  # fmt: skip
        except FileNotFoundError:
            raise NotThisClusterError(f"{self.program} is missing: install it") from None
        except subprocess.TimeoutExpired:
            said = f"kubectl {words[0]} has had no answer for {CALL_SECONDS} s"
            raise RefusedError(said) from None

    def __call__(self, *words: str, given: str | None = None) -> str:
        """What it says. Raises RefusedError."""
        done = self.call(*words, given=given)
        if done.returncode:
            raise RefusedError(done.stderr.strip() or done.stdout.strip() or "no reason given")
        return done.stdout

    def apply(self, manifests: Iterable[Manifest], *more: str) -> list[str]:
        """Warnings that came with it, one a line. Raises RefusedError."""
        text = yaml.safe_dump_all(manifests)
        done = self.call("apply", "-f", "-", *more, given=text)
        if done.returncode:
            raise RefusedError(done.stderr.strip())
        return done.stderr.strip().splitlines()

    def get(self, kind: str, name: str, namespace: str) -> Manifest:
        found: Manifest = json.loads(self("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def listed(self, kind: str, namespace: str, *more: str) -> list[Manifest]:
        answer = json.loads(self("get", kind, "-n", namespace, "-o", "json", *more))
        found: list[Manifest] = answer["items"]
        return found

    def patch(self, kind: str, name: str, namespace: str, change: Manifest) -> None:
        self("patch", kind, name, "-n", namespace, "--type", "merge", "-p", json.dumps(change))

    def kinds(self) -> frozenset[tuple[str, str]]:
        """Group and kind of all that the cluster knows."""
        lines = self("api-resources", "--no-headers").splitlines()
        return frozenset(_group_and_kind(line.split()) for line in lines if line.strip())

    def may(self, account: str, namespace: str) -> list[str]:
        """What the account may do in the namespace, as `verb group/resource`, beyond what everybody
        may who is known at all."""
        user = f"--as=system:serviceaccount:{namespace}:{account}"
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        }
        given = json.dumps(review)
        answer = json.loads(
            self("create", "-f", "-", "-o", "json", "--validate=false", user, given=given)
        )
        return sorted(
            f"{verb} {group or 'core'}/{resource}"
            for rule in answer["status"]["resourceRules"]
            for group in rule.get("apiGroups", [])
            for resource in rule.get("resources", [])
            for verb in rule["verbs"]
            if group not in ("authorization.k8s.io", "authentication.k8s.io")
        )


def _group_and_kind(words: Sequence[str]) -> tuple[str, str]:
    """NAME [SHORTNAMES] APIVERSION NAMESPACED KIND."""
    version, _, kind = words[-3:]
    return version.rpartition("/")[0], kind


def until(
    look: Callable[[], T | None], seconds: float, what: str, instead: Callable[[], str] = str
) -> tuple[T, float]:
    """What `look` finds at last, and the seconds that it took. Fails with `what`, and with what
    there was `instead`."""
    started = time.monotonic()
    while True:
        found = look()
        took = time.monotonic() - started
        if found is not None:
            return found, took
        if took >= seconds:
            said = instead()
            raise AssertionError(f"{what}: not within {seconds:g} s{said and f' ({said})'}")
        time.sleep(LOOK_SECONDS)


def held(look: Callable[[], bool], seconds: float, what: str) -> None:
    """`look` stays true. Fails with `what`."""
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        assert look(), f"{what}: after {time.monotonic() - started:.0f} s it did not hold any more"
        time.sleep(LOOK_SECONDS)
