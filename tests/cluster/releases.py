"""What is allowed, what a new version goes through, and what is told of something wrong.

Each trial returns what it saw, in words for a table, and fails by an AssertionError that says what
was seen instead."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from typing import Any, Final

import httpx

from cluster import tree
from cluster.api import Manifest, RefusedError, until
from cluster.scene import READERS, SETTLED_SECONDS, Scene, Stage
from cluster.tree import DATA, NAMESPACE
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.kafka_jars import project_root
from leaderboard.stack.process import LOOPBACK, Process, free_port
from running import command

OVERLAY: Final = "keda/overlays/production"
AS_DEPLOYER: Final = "kubectl --as=somebody --as-group=leaderboard-deployers"


def token_does_no_more(scene: Scene) -> str:
    """`tournament`'s account may list and patch revisions of its namespace, and nothing else; the
    other functions' accounts may do nothing."""
    wanted = [f"{verb} serving.knative.dev/revisions" for verb in ("list", "patch")]
    found = scene.cluster.may("tournament", NAMESPACE)
    assert found == wanted, f"tournament may {found}"
    for other in (DATA, "kube-system"):
        review = ["auth", "can-i", "patch", "revisions.serving.knative.dev", "-n", other]
        user = f"--as=system:serviceaccount:{NAMESPACE}:tournament"
        assert scene.cluster.call(*review, user).stdout.strip() == "no", f"also in {other}"
    for account in (*READERS, "query", "on-connect", "erase", "on-wager-http", "relay", "gateway"):
        assert (may := scene.cluster.may(account, NAMESPACE)) == [], f"{account} may {may}"
    return "list and patch revisions of its own namespace"


# --- versions ------------------------------------------------------------------------------------


def rollout_goes_on_and_back(scene: Scene) -> str:
    """`leaderboard rollout` as a deployer: a revision whose check fails at 10 % is taken back, one
    whose check passes gets everything, and `--back` gives it to the one before."""
    base = ["rollout", "query", "-n", NAMESPACE, "--kubectl", AS_DEPLOYER, "--watch", "3"]
    old = serving(scene)
    check = scene.folder / "check.sh"
    check.write_text(
        '#!/bin/sh\n[ "$PERCENT" -lt 10 ] || { echo too slow >&2; exit 3; }\n', "utf-8"
    )
    check.chmod(0o755)
    failed = _command(scene, *base, "leaderboard/query:bad", "--check", str(check))
    assert failed.returncode == 1, f"a failing check was passed:\n{failed.stdout}"
    assert "the check failed at 10 %" in failed.stderr, failed.stderr
    until(lambda: serving(scene) == old or None, 30, f"{old} has everything again")
    done = _command(scene, *base, "leaderboard/query:good")
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: serving(scene) not in (old, {}) or None, 30, "the new revision has everything")
    back = _command(scene, *base[:6], "--back", "--to", next(iter(old)))
    assert back.returncode == 0, back.stdout + back.stderr
    until(lambda: serving(scene) == old or None, 30, f"{old} has everything again")
    said = failed.stderr.strip().splitlines()[-1]
    return f"“{said}”; 0, 10, 50, 100 % passed; back in one step"


def serving(scene: Stage[Any]) -> dict[str, int]:
    """Revisions and their percents."""
    found = scene.cluster.get("services.serving.knative.dev", "query", NAMESPACE)
    shares = found["status"].get("traffic", [])
    return {one["revisionName"]: one["percent"] for one in shares if one.get("percent")}


def _command(scene: Scene, *words: str) -> subprocess.CompletedProcess[str]:
    return command(words, scene.folder, {"KUBECONFIG": scene.cluster.kubeconfig})


# --- bad input -----------------------------------------------------------------------------------


def faults_are_told(scene: Scene) -> str:
    """A wrong password, brokers that are not there, a floor above the ceiling: the ScaledObject, or
    the API, says so."""
    good = scene.manifest(OVERLAY, "ScaledObject", "archive")
    secret = {"stringData": {"password": "a wrong one"}}
    scene.cluster.patch("secret", "kafka-archive", NAMESPACE, secret)
    password = _told_by_a_new_one(scene, good)
    assert "SASL" in password or "uthenticat" in password, password
    scene.cluster.apply(tree.settings(scene.backing.given))
    nowhere = {"data": {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}}
    scene.cluster.patch("configmap", "leaderboard", NAMESPACE, nowhere)
    brokers = _told_by_a_new_one(scene, good)
    assert "127.0.0.1:1" in brokers or "brokers" in brokers, brokers
    scene.cluster.apply(tree.settings(scene.backing.given))
    _told_by_a_new_one(scene, good, is_ready=True)
    high = {**good, "spec": {**good["spec"], "minReplicaCount": 60}}
    try:
        scene.cluster.apply([high])
    except RefusedError as error:
        ceiling = str(error)
    else:
        raise AssertionError("a floor above the ceiling was taken")
    assert re.search("minReplicaCount|MinReplicaCount", ceiling), ceiling
    told = (one.rpartition("to talk to: ")[2] for one in (password, brokers))
    return "; ".join(f"“{_brief(one)}”" for one in (*told, ceiling.splitlines()[-1]))


def _told_by_a_new_one(scene: Scene, good: Manifest, *, is_ready: bool = False) -> str:
    """Make the ScaledObject anew; what its events say of what is wrong, empty once it is ready."""
    name = good["metadata"]["name"]
    scene.cluster("delete", "scaledobject", name, "-n", NAMESPACE)
    scene.cluster.apply([good])
    made = scene.cluster.get("scaledobject", name, NAMESPACE)["metadata"]["uid"]

    def look() -> str | None:
        status, _ = scene.condition(name)
        if is_ready:
            return "" if status == "True" else None
        found = scene.cluster.listed(
            "events", NAMESPACE, "--field-selector", f"involvedObject.uid={made},type=Warning"
        )
        said = [str(one["message"]) for one in found]
        return said[0] if said else None

    return until(
        look, SETTLED_SECONDS, f"ScaledObject {name}: {'ready' if is_ready else 'a warning'}"
    )[0]


def functions_tell_their_faults(scene: Scene) -> str:
    """`on-wager` with the very environment of its Deployment: with its Secret it gets ready (TLS,
    SCRAM, its own rights and no others), without it does not start, with a wrong one or without
    brokers it is not ready; and says why."""
    environ = _environ(scene, "on-wager")
    _started(scene, "right", environ).stop()
    missing = {**environ, "KAFKA_SASL_PASSWORD": ""}
    process = _process(scene, "missing", {k: v for k, v in missing.items() if v})
    process.start()
    code, _ = until(process.exit_code, 30, "on-wager without a password ends")
    said = process.last_line().partition(" (see ")[0]
    assert code and "KAFKA_SASL_PASSWORD" in said, f"{code}: {said}"
    other = {**environ, "KAFKA_SASL_PASSWORD": "a wrong one"}
    wrong = _not_ready(scene, "wrong", other, "uthentication failed")
    nowhere = {**environ, "KAFKA_BOOTSTRAP_SERVERS": f"{LOOPBACK}:1"}
    away = _not_ready(scene, "away", nowhere, "Connection refused")
    return f"ready with all; without the Secret “{_brief(said)}”; else “{wrong}”, “{away}”"


def _environ(scene: Scene, name: str) -> dict[str, str]:
    """As Kubernetes makes it of the Deployment, ConfigMap and Secrets that are in the cluster."""
    deployment = scene.cluster.get("deployment", name, NAMESPACE)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    authority = scene.folder / "kafka-ca.crt"
    authority.write_text(scene.backing.given.authority, "utf-8")
    found = {}
    for one in container["env"]:
        text = one["value"] if "value" in one else _looked_up(scene, one["valueFrom"])
        if text is not None:
            found[one["name"]] = text.replace("/etc/kafka-ca/ca.crt", str(authority))
    return found


def _looked_up(scene: Scene, source: Manifest) -> str | None:
    (kind, ref), *_ = source.items()
    what = {"configMapKeyRef": "configmap", "secretKeyRef": "secret"}[kind]
    try:
        data = scene.cluster.get(what, ref["name"], NAMESPACE)["data"]
        text: str = data[ref["key"]]
    except (RefusedError, KeyError):
        assert ref.get("optional"), f"{what} {ref['name']} has no {ref['key']}"
        return None
    return base64.b64decode(text).decode() if what == "secret" else text


def _process(scene: Scene, label: str, environ: dict[str, str]) -> Process:
    function = next(one for one in FUNCTIONS if one.name == "on-wager")
    port = free_port()
    return Process(
        label,
        function.command(project_root(), port),
        environ={"PATH": "/usr/bin:/bin", **environ, "PORT": str(port), "HOST": LOOPBACK},
        log_path=scene.folder / f"on-wager-{label}-{port}.log",
    )


def _port(process: Process) -> int:
    return int(process.log_path.stem.rpartition("-")[2])


def _started(scene: Scene, label: str, environ: dict[str, str]) -> Process:
    """Ready."""
    process = _process(scene, label, environ)
    process.start()
    try:
        process.wait_until(lambda: _readiness(_port(process))[0] == 200, 60)
    except BaseException:
        process.stop()
        raise
    return process


def _not_ready(scene: Scene, label: str, environ: dict[str, str], words: str) -> str:
    """The line of its log that has these words, as soon as /readyz says that Kafka is away."""
    process = _process(scene, label, environ)
    process.start()
    try:

        def look() -> str | None:
            status, text = _readiness(_port(process))
            assert status != 200, f"on-wager is ready, with a fault: {label}"
            if status != 503 or json.loads(text)["dependencies"]["kafka"] == "ready":
                return None
            lines = process.log_path.read_text("utf-8", errors="replace").splitlines()
            return next((one for one in lines if words in one), None)

        said, _ = until(look, 60, f"on-wager tells its fault ({label}): {process.last_line()}")
    finally:
        process.stop()
    # Before that it is named which client it is.
    return _brief(json.loads(said)["message"].rpartition("/bootstrap: ")[2])


def _readiness(port: int) -> tuple[int, str]:
    try:
        answer = httpx.get(f"http://{LOOPBACK}:{port}/readyz", timeout=5)
    except httpx.HTTPError:
        return 0, ""
    return answer.status_code, answer.text


def _brief(said: str) -> str:
    return re.sub(r"\s+|\|", " ", said)[:140]
