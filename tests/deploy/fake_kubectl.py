"""A `kubectl` over one Knative Service in a file, as Knative's controllers would keep it.

The first argument is the file. Tags of images say how a revision behaves: `broken` never gets
ready, `crashing` is started again when it has a share, `failing` loses its readiness then.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any


def initial(name: str, image: str) -> dict[str, Any]:
    """A Service with one revision that has everything."""
    state: dict[str, Any] = {
        "service": {
            "metadata": {"name": name, "generation": 1, "resourceVersion": "1"},
            "spec": {
                "template": {"spec": {"containers": [{"name": name, "image": image, "env": []}]}},
                "traffic": [{"latestRevision": True, "percent": 100}],
            },
            "status": {},
        },
        "revisions": {},
        "calls": [],
    }
    _reconcile(state)
    return state


def _reconcile(state: dict[str, Any]) -> None:
    service, revisions = state["service"], state["revisions"]
    meta, spec, status = service["metadata"], service["spec"], service["status"]
    containers = spec["template"]["spec"]["containers"]
    latest = status.get("latestCreatedRevisionName")
    if latest is None or revisions[latest]["spec"]["containers"] != containers:
        latest = f"{meta['name']}-{meta['generation']:05}"
        is_ready = not containers[0]["image"].endswith(":broken")
        ready = {"type": "Ready", "status": "True" if is_ready else "Unknown"}
        if not is_ready:
            ready["message"] = "container exited with code 2: DATABASE_URL: is missing"
        revisions[latest] = {
            "metadata": {
                "name": latest,
                "labels": {
                    "serving.knative.dev/service": meta["name"],
                    "serving.knative.dev/configurationGeneration": str(meta["generation"]),
                },
            },
            "spec": {"containers": containers},
            "status": {"conditions": [ready]},
            "restarts": 0,
        }
    status["latestCreatedRevisionName"] = latest
    status["observedGeneration"] = meta["generation"]
    # As Knative tells it: `latestRevision` has become a name, and of a tag there is an address.
    status["traffic"] = [{"revisionName": latest, "percent": 0, **one} for one in spec["traffic"]]
    for share in status["traffic"]:
        revision = revisions[share["revisionName"]]
        tag = revision["spec"]["containers"][0]["image"].rpartition(":")[2]
        if share["percent"] and tag == "failing":
            revision["status"]["conditions"][0] |= {"status": "False", "message": "probe failed"}


def _answer(state: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    options = dict(pairwise(arguments))
    verb, kind = arguments[0], arguments[1].split(".")[0]
    if verb == "patch":
        service = state["service"]
        change = json.loads(options["--patch"])
        version = change.get("metadata", {}).get("resourceVersion")
        if version not in (None, service["metadata"]["resourceVersion"]):
            sys.exit("Error from server (Conflict): the object has been modified")
        total = sum(one.get("percent", 0) for one in change["spec"].get("traffic", []))
        if total != 100:
            sys.exit(f"Error from server (BadRequest): traffic targets sum to {total}, want 100")
        spec = service["spec"]
        before = json.dumps(spec)
        spec["traffic"] = change["spec"]["traffic"]
        template = change["spec"].get("template")
        if template:
            spec["template"]["spec"] |= template["spec"]
        notes = service["metadata"].setdefault("annotations", {})
        for name, text in change.get("metadata", {}).get("annotations", {}).items():
            notes.pop(name, None) if text is None else notes.update({name: text})
        service["metadata"]["generation"] += json.dumps(spec) != before
        service["metadata"]["resourceVersion"] += "0"
        _reconcile(state)
        return dict(service)
    if kind == "services":
        if arguments[2] != state["service"]["metadata"]["name"]:
            sys.exit(f'Error from server (NotFound): services "{arguments[2]}" not found')
        seen = json.loads(json.dumps(state["service"]))
        if state["calls"] and state.get("restless"):
            # Its status changes right after somebody has looked at it.
            state["restless"] -= 1
            state["service"]["metadata"]["resourceVersion"] += "1"
        return dict(seen)
    if kind == "pods":
        revision = state["revisions"][options["--selector"].partition("=")[2]]
        shares = {s["revisionName"]: s["percent"] for s in state["service"]["status"]["traffic"]}
        if revision["spec"]["containers"][0]["image"].endswith(":crashing"):
            revision["restarts"] += bool(shares.get(revision["metadata"]["name"]))
        counts = [{"restartCount": revision["restarts"]}]
        return {"items": [{"status": {"containerStatuses": counts}}]}
    if "--selector" in arguments:
        return {"items": list(state["revisions"].values())}
    if arguments[2] not in state["revisions"]:
        sys.exit(f'Error from server (NotFound): revisions "{arguments[2]}" not found')
    return dict(state["revisions"][arguments[2]])


def main() -> None:
    path, arguments = Path(sys.argv[1]), sys.argv[2:]
    state = json.loads(path.read_text("utf-8"))
    if arguments[0] == "--namespace":
        arguments = arguments[2:]
    answer = _answer(state, arguments)
    if arguments[0] == "patch":
        state["calls"].append(json.loads(arguments[arguments.index("--patch") + 1]))
    path.write_text(json.dumps(state), "utf-8")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
