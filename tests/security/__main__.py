"""`make security`: every promise tried on a local stack, and the table of how it went."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from security import promises

BUILD = promises.ROOT / "build"


def main() -> int:
    """0 where every promise held."""
    parser = argparse.ArgumentParser(prog="make security")
    parser.add_argument("--workers", default="2", help="processes that test beside each other")
    parser.add_argument("--write", action="store_true", help="put the table into docs/security.md")
    given = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    report = BUILD / "security.xml"
    report.unlink(missing_ok=True)
    began = time.monotonic()
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-n", given.workers, "--dist", "loadfile"),
        "--override-ini=junit_family=xunit1",  # the other one has no properties
        *("--no-loadscope-reorder", f"--junitxml={report}", "tests/security"),
        *promises.selected(),
    ]
    ended = subprocess.run(command, cwd=promises.ROOT, check=False).returncode
    if not report.exists():
        return ended or 1
    found = promises.rows(report)
    machine = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began),
    }
    told = promises.as_json(found, machine)
    (BUILD / "security.json").write_text(told, encoding="utf-8")
    print(promises.table(found))
    print(f"{machine['seconds']} s; written to {Path('build/security.json')}")
    if given.write:
        promises.put_into_page(promises.table(found))
    return ended


if __name__ == "__main__":
    sys.exit(main())
