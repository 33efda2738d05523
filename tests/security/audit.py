"""`make audit`: the lock looked up in a source of advisories, by pip-audit.

pip-audit calls it a success when a source knows none of the packages, as a mirror without that part
does. So a canary goes first: an old release whose faults every source knows. Where they are not
told nothing is looked up, nothing is called clean, and the end is an error of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
CANARY: Final = "jinja2==2.4"
SOURCES: Final = ("osv", "pypi")
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3
Report = Mapping[str, Any]
Ask = Callable[[str, str], Report | None]
_PINNED: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def pinned(lock: str) -> list[str]:
    """`name==version` of every package in a lock."""
    return [f"{name}=={version}" for name, version in _PINNED.findall(lock)]


def pip_audit(source: str, packages: str) -> Report | None:
    """What pip-audit says of these packages, one a line; None where it can't tell."""
    words = [
        *(sys.executable, "-m", "pip_audit", "-r", "/dev/stdin", "--disable-pip", "--no-deps"),
        *("-s", source, "-f", "json", "--progress-spinner", "off", "--timeout", "15"),
    ]
    done = subprocess.run(
        words, input=packages, capture_output=True, text=True, timeout=600, check=False
    )
    try:
        told: Report = json.loads(done.stdout)
    except ValueError:
        return None
    return told


def faults(report: Report) -> list[str]:
    """Each vulnerable package with its advisories, and what would mend it."""
    return [
        f"{one['name']} {one['version']}: {fault['id']}, "
        f"mended in {', '.join(fault['fix_versions']) or 'no release'}"
        for one in report["dependencies"]
        for fault in one.get("vulns", ())
    ]


def unknown(report: Report) -> list[str]:
    """Packages that the source could not tell anything of."""
    return [one["name"] for one in report["dependencies"] if "skip_reason" in one]


def audit(lock: str, sources: Sequence[str], ask: Ask = pip_audit) -> tuple[int, list[str]]:
    """Exit code, and what to print."""
    packages = pinned(lock)
    for source in sources:
        canary = ask(source, CANARY)
        if canary is None or not faults(canary):
            continue
        report = ask(source, "\n".join(packages))
        if report is None:
            continue
        found, missed = faults(report), unknown(report)
        told = [*found, *(f"{name}: {source} does not know it" for name in missed)]
        if len(report["dependencies"]) != len(packages):
            told.append(f"of {len(packages)} packages {len(report['dependencies'])} were told of")
            return VULNERABLE if found else UNKNOWN, told
        if not told:
            told = [f"{len(packages)} packages, no advisory in {source}"]
        return VULNERABLE if found else UNKNOWN if missed else CLEAN, told
    return UNKNOWN, [
        f"nothing was audited: of {', '.join(sources)} no source of advisories answers here "
        f"(asked for {CANARY}, which has known faults)"
    ]


def main() -> int:
    """0: no advisory. 1: some. 3: it could not be told."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    code, told = audit(lock, SOURCES)
    print("\n".join(told), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
