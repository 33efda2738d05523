"""Schemathesis, by its own command, over the documented operations of one running function."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LONGEST_SECONDS: Final = 150
CONFIG: Final = """
request-timeout = 20
continue-on-failure = true

[generation]
deterministic = true

[checks]
# What comes of an erasure or of an end is looked at elsewhere: here nothing links two calls.
use_after_free.enabled = false
ensure_resource_availability.enabled = false
# Right by its shape: a time may still have passed, and a tournament may be over.
positive_data_acceptance.expected-statuses = [
    "2xx", "304", "401", "403", "404", "409", "422", "429",
]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "413", "415", "422"]

[phases.stateful]
enabled = false
"""


@dataclass(frozen=True)
class Run:
    """What was asked, and what was wrong with the answers."""

    statuses: Mapping[int, int]
    """How many answers had which status."""
    operations: frozenset[str]
    failures: Sequence[str]

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())


def over(
    url: str,
    folder: Path,
    *,
    headers: Mapping[str, str],
    known: Mapping[str, str],
    examples: int,
    phases: str = "coverage,fuzzing",
) -> Run:
    """All operations that `url` documents, with these headers. `known` are values of path
    parameters that exist there; `examples` bound what is generated for an operation, `phases` are
    the tool's own names: systematic variations, and chance."""
    told = "".join(f"{name} = {json.dumps(text)}\n" for name, text in known.items())
    config, report = folder / "schemathesis.toml", folder / "events.ndjson"
    config.write_text(f"{CONFIG}\n[parameters]\n{told}", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}"),
        *("run", f"{url}/openapi.json", f"--url={url}", "--no-shrink", "--seed=1"),
        f"--phases={phases}",
        *("--report=ndjson", f"--report-ndjson-path={report}", f"--max-examples={examples}"),
        *(f"--header={name}: {text}" for name, text in headers.items()),
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    found = _read(report)
    assert bool(found.failures) == bool(done.returncode), done.stdout[-3000:]
    return found


def _read(report: Path) -> Run:
    statuses, operations, failures = Counter[int](), set[str](), []
    for line in report.read_text(encoding="utf-8").splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder")
        if recorder is None or "interactions" not in recorder:
            continue
        operations.add(recorder["label"])
        for interaction in recorder["interactions"].values():
            if (response := interaction.get("response")) is not None:
                statuses[response["status_code"]] += 1
        failures += [f"{recorder['label']}: {told}" for told in _failed(recorder)]
    return Run(statuses, frozenset(operations), failures)


def _failed(recorder: Mapping[str, Any]) -> Iterator[str]:
    for case_id, checks in recorder["checks"].items():
        for check in checks:
            if check["status"] != "success":
                answer = recorder["interactions"].get(case_id, {}).get("response") or {}
                yield f"{check['name']} ({answer.get('status_code')}): {check.get('failure_info')}"
