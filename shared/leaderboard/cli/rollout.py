"""`leaderboard rollout`: a new image of a Knative Service, step by step, and back.

Only `kubectl` is asked, in plain steps that the command prints. The candidate gets no request
before it is ready and checked; each share is checked before the next; a check that fails, a
candidate that does not get ready, an error or Ctrl-C gives the old revision everything again.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click

from leaderboard.cli.context import CommandError, console

CALL_SECONDS: Final = 30
LOOK_SECONDS: Final = 0.5
CANDIDATE: Final = "candidate"
"""The tag under which the candidate has an address of its own, before it has a share."""
_SERVICE: Final = "services.serving.knative.dev"
_REVISION: Final = "revisions.serving.knative.dev"
_OF_SERVICE: Final = "serving.knative.dev/service"
_GENERATION: Final = "serving.knative.dev/configurationGeneration"
SERVED_BEFORE: Final = "leaderboard.io/served-before"
"""Annotation of a Service, `new=old`: whom the last rollout took everything from, while `new` has
it. Not always the one made before: that may be a candidate that was taken back."""
_TRIES: Final = 5
"""The version of a Service changes with its status, too."""
Manifest = dict[str, Any]
_NONE: Final[Mapping[str, str | None]] = {}


@dataclass(frozen=True, slots=True)
class Kubectl:
    """`kubectl` for one namespace. Every call has a deadline and raises CommandError."""

    program: str
    namespace: str | None

    def __call__(self, *arguments: str) -> Manifest:
        """The answer's JSON."""
        where = ["--namespace", self.namespace] if self.namespace else []
        command = [*shlex.split(self.program), *where, *arguments, "--output", "json"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                timeout=CALL_SECONDS,
            )  # fmt: skip
        except FileNotFoundError:
            raise CommandError(f"{command[0]} is missing: install it, or set --kubectl") from None
        except subprocess.TimeoutExpired:
            raise CommandError(f"the cluster has not answered within {CALL_SECONDS} s") from None
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            raise CommandError(f"kubectl {arguments[0]}: {said[-1]}")
        answer: Manifest = json.loads(done.stdout)
        return answer

    def service(self, name: str) -> Manifest:
        return self("get", _SERVICE, name)

    def revision(self, name: str) -> Manifest:
        return self("get", _REVISION, name)

    def revisions(self, service: str) -> list[Manifest]:
        """The newest first."""
        found = self("get", _REVISION, "--selector", f"{_OF_SERVICE}={service}")["items"]
        return sorted(found, key=lambda one: -int(one["metadata"]["labels"][_GENERATION]))

    def patch(self, name: str, change: Manifest) -> Manifest:
        return self("patch", _SERVICE, name, "--type", "merge", "--patch", json.dumps(change))

    def pods(self, revision: str) -> list[Manifest]:
        label = f"serving.knative.dev/revision={revision}"
        found: list[Manifest] = self("get", "pods", "--selector", label)["items"]
        return found


class StepError(CommandError):
    """A step that did not do; the rollout is taken back."""


@dataclass(slots=True)
class Rollout:
    """One Service's way from one revision to another. `told` gets each step in a line."""

    kubectl: Kubectl
    service: str
    ready_seconds: float
    watch_seconds: float
    check: str | None
    told: Callable[[str], None]
    _generation: int = field(default=0, init=False)
    """Of the Service's spec after our last change: another one is somebody else's."""

    def forward(self, image: str, steps: Sequence[int]) -> str:
        """The new revision, which has everything now. Raises StepError after it was taken back,
        CommandError where nothing was begun."""
        found = self.kubectl.service(self.service)
        old = self._serving(found)
        containers = found["spec"]["template"]["spec"]["containers"]
        has_it = containers[0]["image"] == image
        if has_it and found["status"].get("latestCreatedRevisionName") == old:
            raise CommandError(f"{self.service} has the image {image} already")
        template = {"spec": {"containers": [{**containers[0], "image": image}, *containers[1:]]}}
        self.told(f"{old} serves; {image} is started beside it")
        # Pinned in the same step: a new revision would take everything as soon as it is ready.
        # The version makes a change by somebody else, in between, an error of ours.
        change = {
            "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
            "spec": {"template": template, "traffic": [_share(old, 100)]},
        }
        # One that was taken back, tried once more, is the same revision.
        before = found["metadata"]["generation"] - has_it
        self._generation = self.kubectl.patch(self.service, change)["metadata"]["generation"]
        try:
            new = self._created(old, before)
            self._route(old, new, 0)
            self._wait_until_ready(new)
            self._watch(new, 0)
            for percent in steps:
                self._route(old, new, percent)
                self._watch(new, percent)
            # As it is without a rollout: what is applied next is served. What somebody else made
            # meanwhile was checked by nobody, and is not.
            self._go_on([{"latestRevision": True, "percent": 100}], {SERVED_BEFORE: f"{new}={old}"})
        except (CommandError, KeyboardInterrupt) as error:
            said = "stopped by hand" if isinstance(error, KeyboardInterrupt) else str(error)
            try:
                self._patch_traffic([_share(old, 100)])
            except CommandError as second:
                hint = f"run `leaderboard rollout {self.service} --back --to {old}`"
                raise StepError(f"{said}; and not taken back: {second}; {hint}") from None
            raise StepError(f"{said}; taken back, {old} has 100 % again") from None
        return new

    def back(self, to: str | None) -> str:
        """Give everything to revision `to`, or to the one that had it before; in one step. Its
        name."""
        if to is None:
            to = self._before()
        self._expect_ready(to)
        self._patch_traffic([_share(to, 100)], {SERVED_BEFORE: None})
        self._wait_for_share(to, 100)
        return to

    def _before(self) -> str:
        """Who had everything before the rollout that is going on, or before the last one."""
        found = self.kubectl.service(self.service)
        names: list[str] = [r["metadata"]["name"] for r in self.kubectl.revisions(self.service)]
        serving, candidates = _shared(found)
        known = [name for name in names if name in serving]
        if len(known) > 1 or (known and candidates - serving):
            return known[-1]  # a rollout that nobody ended: its candidate is the newest
        noted: str = found["metadata"].get("annotations", {}).get(SERVED_BEFORE, "")
        new, _, old = noted.partition("=")
        if known == [new] and old in names:
            return old
        later = names[names.index(known[0]) + 1 :] if known else []
        if not later:
            raise CommandError(f"{self.service} has no revision before the one that serves")
        return later[0]

    # --- steps -----------------------------------------------------------------------------------

    def _serving(self, found: Manifest) -> str:
        shares = [one for one in found["status"].get("traffic", []) if one.get("percent")]
        serving, candidates = _shared(found)
        if len(shares) != 1 or candidates - serving:
            parts = [f"{one['revisionName']} {one['percent']} %" for one in shares]
            parts += [f"{name} 0 %" for name in sorted(candidates - serving)]
            raise CommandError(
                f"{self.service} serves {', '.join(parts) or 'nothing'}: end the rollout that is "
                "going on (--back) first"
            )
        name: str = shares[0]["revisionName"]
        return name

    def _created(self, old: str, generation: int) -> str:
        def look() -> str | None:
            found = self.kubectl.service(self.service)
            name: str = found["status"].get("latestCreatedRevisionName", old)
            seen = found["status"].get("observedGeneration", 0) > generation
            return name if seen and name != old else None

        name: str = self._until(look, "no new revision was made")
        return name

    def _wait_until_ready(self, new: str) -> None:
        self.told(f"waiting until {new} is ready")
        self._until(lambda: _condition(self.kubectl.revision(new)) == "True" or None,
                    f"{new} is not ready", lambda: _reason(self.kubectl.revision(new)))  # fmt: skip

    def _expect_ready(self, name: str) -> None:
        found = self.kubectl.revision(name)
        if found["metadata"]["labels"].get(_OF_SERVICE) != self.service:
            raise CommandError(f"{name} is no revision of {self.service}")
        if _condition(found) != "True":
            raise CommandError(f"{name} is not ready: {_reason(found)}")

    def _route(self, old: str, new: str, percent: int) -> None:
        self.told(f"{new} gets {percent} %")
        shares = [_share(old, 100 - percent), {**_share(new, percent), "tag": CANDIDATE}]
        self._go_on([one for one in shares if one["percent"] or "tag" in one])
        if percent:
            self._wait_for_share(new, percent)

    def _wait_for_share(self, name: str, percent: int) -> None:
        def look() -> bool | None:
            shares = self.kubectl.service(self.service)["status"].get("traffic", [])
            return {s["revisionName"]: s.get("percent") for s in shares}.get(
                name
            ) == percent or None

        self._until(look, f"{name} has not got {percent} %")

    def _go_on(self, shares: Sequence[Manifest], notes: Mapping[str, str | None] = _NONE) -> None:
        """A step forward, from where our last one led and from nowhere else."""
        for left in reversed(range(_TRIES)):
            found = self.kubectl.service(self.service)["metadata"]
            if found["generation"] != self._generation:
                raise StepError(f"somebody else has changed {self.service} meanwhile")
            try:
                done = self._patch_traffic(shares, notes, found["resourceVersion"])
            except CommandError as error:
                if not left or "(Conflict)" not in str(error):
                    raise
            else:
                self._generation = done["metadata"]["generation"]
                return

    def _patch_traffic(
        self,
        shares: Sequence[Manifest],
        notes: Mapping[str, str | None] = _NONE,
        version: str | None = None,
    ) -> Manifest:
        metadata: Manifest = {"annotations": dict(notes)} if notes else {}
        metadata |= {"resourceVersion": version} if version is not None else {}
        change: Manifest = {"spec": {"traffic": list(shares)}}
        return self.kubectl.patch(self.service, {"metadata": metadata, **change})

    def _watch(self, new: str, percent: int) -> None:
        """The revision stays sound for the time, and the check (where there is one) agrees."""
        restarts = _restarts(self.kubectl.pods(new))
        until = time.monotonic() + (self.watch_seconds if percent else 0)
        while True:
            found = self.kubectl.revision(new)
            if _condition(found) != "True":
                raise StepError(f"{new} is not ready any more: {_reason(found)}")
            if _restarts(self.kubectl.pods(new)) > restarts:
                raise StepError(f"a container of {new} was started again")
            left = until - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, LOOK_SECONDS))
        if self.check is not None:
            self._run_check(self.check, new, percent)

    def _run_check(self, check: str, new: str, percent: int) -> None:
        told = {"SERVICE": self.service, "REVISION": new, "PERCENT": str(percent)}
        self.told(f"checking {new} at {percent} %: {check}")
        try:
            done = subprocess.run(
                shlex.split(check), env={**os.environ, **told}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False, timeout=self.ready_seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise StepError(f"the check took longer than {self.ready_seconds:g} s") from None
        except OSError as error:
            raise StepError(f"the check can't be run: {error}") from None
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
            raise StepError(f"the check failed at {percent} % ({done.returncode}): {said[-1]}")

    def _until(
        self, look: Callable[[], Any], what: str, why: Callable[[], str] | None = None
    ) -> Any:
        until = time.monotonic() + self.ready_seconds
        while (found := look()) is None:
            if time.monotonic() > until:
                reason = f" ({why()})" if why else ""
                raise StepError(f"{what} after {self.ready_seconds:g} s{reason}")
            time.sleep(LOOK_SECONDS)
        return found


def _shared(service: Manifest) -> tuple[set[str], set[str]]:
    """Revisions that have a share, and those that a rollout wants beside them."""
    seen, wanted = (service[part].get("traffic", []) for part in ("status", "spec"))
    serving = {one["revisionName"] for one in seen if one.get("percent")}
    return serving, {one["revisionName"] for one in wanted if one.get("tag") == CANDIDATE}


def _share(revision: str, percent: int) -> Manifest:
    return {"revisionName": revision, "percent": percent}


def _condition(revision: Manifest) -> str:
    found = _ready_of(revision)
    return str(found.get("status", "Unknown"))


def _reason(revision: Manifest) -> str:
    found = _ready_of(revision)
    return str(found.get("message") or found.get("reason") or "no reason given")


def _ready_of(revision: Manifest) -> Mapping[str, Any]:
    conditions = revision.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "Ready"), {})


def _restarts(pods: Sequence[Manifest]) -> int:
    statuses = [s for pod in pods for s in pod.get("status", {}).get("containerStatuses", [])]
    return sum(one.get("restartCount", 0) for one in statuses)


def _steps(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("is no list of percents like 10,50,100") from None
    if list(steps) != sorted(set(steps)) or steps[-1] != 100 or steps[0] < 1:
        raise click.BadParameter("has to rise from at least 1 to 100")
    return steps


@click.command(
    help="Give IMAGE to the Knative Service SERVICE: 10, 50, then 100 % of the requests, each "
    "share watched and checked, and everything back to the old revision when something fails."
)
@click.argument("service")
@click.argument("image", required=False)
@click.option("--steps", default="10,50,100", show_default=True, callback=_steps, help="Percents.")
@click.option("--blue-green", is_flag=True, help="No shares: checked at 0 %, then 100 % at once.")
@click.option("--back", is_flag=True, help="Everything to the revision before, at once; no IMAGE.")
@click.option("--to", help="With --back: to this revision.")
@click.option("--check", help="A command; run at 0 % and at each share with SERVICE, REVISION and "
              "PERCENT in its environment. Anything but exit code 0 takes the rollout back.")  # fmt: skip  # noqa: E501
@click.option("--watch", default=60.0, show_default=True, help="Seconds at each share.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds until ready.")
@click.option("--namespace", "-n", help="Default: that of the context.")
@click.option("--kubectl", default="kubectl", show_default=True, help="The program.")
def rollout(  # noqa: PLR0913
    *, service: str, image: str | None, steps: tuple[int, ...], blue_green: bool, back: bool,
    to: str | None, check: str | None, watch: float, timeout: float, namespace: str | None,
    kubectl: str,
) -> None:  # fmt: skip
    """Exit code 1 also where it was taken back."""
    if back == (image is not None) or (to is not None and not back):
        raise click.UsageError("give either an IMAGE, or --back with or without --to")

    def told(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    # Also a pipeline that gives up on us, or one that started us deaf to Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    work = Rollout(Kubectl(kubectl, namespace), service, timeout, watch, check, told)
    if image is None:
        told(f"{work.back(to)} has 100 % again")
    else:
        told(f"{work.forward(image, (100,) if blue_green else steps)} has 100 %")
