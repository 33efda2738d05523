"""`leaderboard rollout`, the real command, over a `kubectl` that keeps a Service in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy import fake_kubectl

OLD, NEW = "query-00001", "query-00002"


@dataclass(frozen=True)
class Scene:
    """A Service and the command."""

    path: Path

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
        return state

    def shares(self) -> dict[str, int]:
        traffic = self.state()["service"]["status"]["traffic"]
        return {one["revisionName"]: one["percent"] for one in traffic if one["percent"]}

    def steps(self) -> list[int]:
        """What the second revision got, patch by patch."""
        return [
            sum(s["percent"] for s in call["spec"]["traffic"] if s.get("revisionName") != OLD)
            for call in self.state()["calls"]
        ]

    def command(self, *arguments: str) -> list[str]:
        kubectl = f"{sys.executable} {fake_kubectl.__file__} {self.path}"
        base = [sys.executable, "-m", "leaderboard.cli", "rollout", "query", "--kubectl", kubectl]
        return [*base, "--timeout", "2", "--watch", "0.1", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, timeout=60
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    path = tmp_path / "service.json"
    path.write_text(json.dumps(fake_kubectl.initial("query", "query:1")), "utf-8")
    return Scene(path)


def check(tmp_path: Path, text: str) -> str:
    """A check as a program."""
    path = tmp_path / "check.sh"
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    return str(path)


def test_new_image_gets_a_tenth_a_half_then_all(scene: Scene, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    looking = check(tmp_path, f'echo "$SERVICE $REVISION $PERCENT" >> {seen}')
    done = scene.run("query:2", "--check", looking)
    assert done.returncode == 0, done.stderr
    assert scene.steps() == [0, 0, 10, 50, 100, 100]
    assert scene.shares() == {NEW: 100}
    assert seen.read_text("utf-8").splitlines() == [f"query {NEW} {p}" for p in (0, 10, 50, 100)]
    assert done.stdout.strip().splitlines()[-1] == f"{NEW} has 100 %"
    # As without a rollout: what is applied next is served.
    assert scene.state()["service"]["spec"]["traffic"] == [{"latestRevision": True, "percent": 100}]


def test_no_request_comes_to_a_candidate_that_is_not_ready(scene: Scene) -> None:
    done = scene.run("query:broken")
    assert done.returncode == 1
    assert "DATABASE_URL: is missing" in done.stderr
    assert f"taken back, {OLD} has 100 % again" in done.stderr
    assert set(scene.steps()) == {0}
    assert scene.shares() == {OLD: 100}


@pytest.mark.parametrize("percent", [0, 10, 50, 100])
def test_check_that_fails_takes_it_back(scene: Scene, tmp_path: Path, percent: int) -> None:
    failing = check(tmp_path, f'echo "too many errors" >&2; [ "$PERCENT" != {percent} ]')
    done = scene.run("query:2", "--check", failing)
    assert done.returncode == 1
    assert f"the check failed at {percent} % (1): too many errors" in done.stderr
    assert max(scene.steps()) == percent
    assert scene.shares() == {OLD: 100}


@pytest.mark.parametrize(
    ("tag", "told"),
    [("failing", "is not ready any more: probe failed"), ("crashing", "was started again")],
)
def test_revision_that_breaks_under_requests_is_taken_back(
    scene: Scene, tag: str, told: str
) -> None:
    done = scene.run(f"query:{tag}")
    assert done.returncode == 1
    assert told in done.stderr
    assert max(scene.steps()) == 10
    assert scene.shares() == {OLD: 100}


def test_blue_green_is_checked_before_and_goes_at_once(scene: Scene, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    done = scene.run(
        "query:2", "--blue-green", "--check", check(tmp_path, f"echo $PERCENT>>{seen}")
    )
    assert done.returncode == 0, done.stderr
    assert seen.read_text("utf-8").split() == ["0", "100"]
    assert scene.steps() == [0, 0, 100, 100]


def test_back_gives_the_revision_before_everything(scene: Scene) -> None:
    assert scene.run("query:2").returncode == 0
    done = scene.run("--back")
    assert done.returncode == 0, done.stderr
    assert scene.shares() == {OLD: 100}
    # And there is nothing before that.
    assert "has no revision before" in scene.run("--back").stderr
    assert scene.run("--back", "--to", NEW).returncode == 0
    assert scene.shares() == {NEW: 100}


def test_back_refuses_what_can_not_serve(scene: Scene) -> None:
    assert scene.run("query:broken").returncode == 1
    assert "is not ready" in scene.run("--back", "--to", NEW).stderr
    assert '"query-00009" not found' in scene.run("--back", "--to", "query-00009").stderr
    assert scene.shares() == {OLD: 100}


def test_rollout_that_was_taken_back_can_be_begun_again(scene: Scene) -> None:
    assert scene.run("query:broken").returncode == 1
    done = scene.run("query:2")
    assert done.returncode == 0, done.stderr
    assert OLD not in scene.shares()


def test_image_that_was_taken_back_can_be_tried_once_more(scene: Scene, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    once = check(tmp_path, f"[ -e {gone} ] || {{ touch {gone}; echo no answer >&2; exit 1; }}")
    assert "no answer; taken back" in scene.run("query:2", "--check", once).stderr
    done = scene.run("query:2", "--check", once)
    assert done.returncode == 0, done.stderr
    assert scene.shares() == {NEW: 100}
    assert scene.state()["revisions"].keys() == {OLD, NEW}


def test_back_does_not_lead_to_what_was_taken_back(scene: Scene, tmp_path: Path) -> None:
    """The revision made before the one that serves had failed its check."""
    assert scene.run("query:2", "--check", check(tmp_path, "exit 1")).returncode == 1
    assert scene.run("query:3").returncode == 0
    assert OLD not in scene.shares()
    done = scene.run("--back")
    assert done.returncode == 0, done.stderr
    assert scene.shares() == {OLD: 100}


def test_back_after_a_plain_apply_is_to_the_revision_before_it(scene: Scene) -> None:
    assert scene.run("query:2").returncode == 0
    apply_by_hand(scene, "query:3", [{"latestRevision": True, "percent": 100}])
    assert scene.shares().keys().isdisjoint({OLD, NEW})
    assert scene.run("--back").returncode == 0
    assert scene.shares() == {NEW: 100}


def apply_by_hand(scene: Scene, image: str, traffic: list[dict[str, Any]]) -> None:
    """Somebody else's change of the Service."""
    containers = [{**scene.state()["service"]["spec"]["template"]["spec"]["containers"][0]}]
    containers[0]["image"] = image
    change = {"spec": {"template": {"spec": {"containers": containers}}, "traffic": traffic}}
    arguments = ["patch", "services.serving.knative.dev", "query", "--patch", json.dumps(change)]
    program = [sys.executable, fake_kubectl.__file__, str(scene.path)]
    subprocess.run([*program, *arguments], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_what_somebody_else_applies_meanwhile_gets_nothing(
    scene: Scene, tmp_path: Path, percent: int
) -> None:
    """It was checked by nobody; and theirs would have had everything at our last step."""
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    until_told = f"until [ -e {go_on} ]; do sleep 0.1; done"
    waiting = f'[ "$PERCENT" = {percent} ] || exit 0; touch {begun}; {until_told}'
    with subprocess.Popen(
        scene.command("query:2", "--check", check(tmp_path, waiting), "--timeout", "20"),
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        until = time.monotonic() + 30
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.05)
        apply_by_hand(scene, "query:3", scene.state()["service"]["spec"]["traffic"])
        go_on.touch()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"somebody else has changed query meanwhile; taken back, {OLD} has 100 %" in told
    assert scene.shares() == {OLD: 100}
    given = [call["spec"]["traffic"] for call in scene.state()["calls"]]
    assert [{"latestRevision": True, "percent": 100}] not in given


def test_status_that_changes_stops_no_step(scene: Scene) -> None:
    """A Service's version changes with its status, too: only its spec is anybody's work."""
    state = scene.state()
    state["restless"] = 4
    scene.path.write_text(json.dumps(state), "utf-8")
    done = scene.run("query:2")
    assert done.returncode == 0, done.stderr
    assert scene.state()["restless"] == 0
    assert scene.shares() == {NEW: 100}


@pytest.mark.parametrize("percent", [0, 10, 50])
def test_back_ends_a_rollout_that_nobody_ended(scene: Scene, tmp_path: Path, percent: int) -> None:
    """Killed in the middle, with a revision older than the one that served: that one is not it."""
    assert scene.run("query:2").returncode == 0
    begun = tmp_path / "begun"
    waiting = check(tmp_path, f'[ "$PERCENT" = {percent} ] || exit 0; touch {begun}; sleep 1')
    with subprocess.Popen(scene.command("query:3", "--check", waiting)) as process:
        until = time.monotonic() + 30
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
    again = scene.run("query:4")
    assert again.returncode == 1
    assert "end the rollout that is going on" in again.stderr
    done = scene.run("--back")
    assert done.returncode == 0, done.stderr
    assert scene.shares() == {NEW: 100}
    assert scene.run("query:4").returncode == 0


def test_second_rollout_at_a_time_is_refused(scene: Scene) -> None:
    state = scene.state()
    state["revisions"][NEW] = {**state["revisions"][OLD]}
    shares = [{"revisionName": OLD, "percent": 90}, {"revisionName": NEW, "percent": 10}]
    state["service"]["status"]["traffic"] = shares
    scene.path.write_text(json.dumps(state), "utf-8")
    done = scene.run("query:2")
    assert done.returncode == 1
    assert f"query serves {OLD} 90 %, {NEW} 10 %: end the rollout that is going on" in done.stderr
    assert scene.steps() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_is_taken_back(scene: Scene, tmp_path: Path, number: int) -> None:
    begun = tmp_path / "begun"
    waiting = check(tmp_path, f'[ "$PERCENT" = 0 ] && exit 0; touch {begun}; sleep 1')
    with subprocess.Popen(
        scene.command("query:2", "--check", waiting), stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 30
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "stopped by hand; taken back" in told
    assert scene.shares() == {OLD: 100}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give either an IMAGE, or --back"),
        (("query:2", "--back"), "give either an IMAGE, or --back"),
        (("query:2", "--to", OLD), "give either an IMAGE, or --back"),
        (("query:2", "--steps", "50,10,100"), "has to rise"),
        (("query:2", "--steps", "10,50"), "has to rise"),
        (("query:2", "--steps", "all"), "is no list of percents"),
        (("query:1",), "has the image query:1 already"),
        (("query:2", "--check", "/nowhere/check"), "the check can't be run"),
        (("query:2", "--kubectl", "kubectl-of-nobody"), "kubectl-of-nobody is missing"),
    ],
)
def test_bad_use_is_told(scene: Scene, arguments: tuple[str, ...], told: str) -> None:
    done = scene.run(*arguments)
    assert done.returncode != 0
    assert told in done.stderr.replace("\n", " ")
    assert scene.shares() == {OLD: 100}


def test_service_that_is_none_is_told(scene: Scene) -> None:
    command = [one if one != "query" else "wuery" for one in scene.command("query:2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert 'kubectl get: Error from server (NotFound): services "wuery" not found' in done.stderr
