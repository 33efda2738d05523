"""The part of requirements.lock that one function needs, with its hashes, on standard output.

    python functions/locked.py on-wager          its requirements.txt, and all that this brings
    python functions/locked.py --only setuptools

For image builds and bills of materials: run in the repository's root by a Python that has pip and
setuptools. pip says what the extras bring, with the lock's versions as constraints; a name that the
lock does not have is an error.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path("requirements.lock")
_NAME = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) \\?$")


def locked() -> dict[str, str]:
    """Every requirement of the lock: its text, with hashes, by its normalised name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if match := _NAME.match(line):
            lines = found.setdefault(normalised(match[1]), [])
        if not line.lstrip().startswith("#"):
            lines.append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(function: str) -> list[str]:
    """Names of what the function's extras bring. Asks the package index for metadata."""
    folder = Path("functions")
    own = folder / function / "requirements.txt"
    file = folder / "tools-requirements.txt" if function == "tools" else own
    if not file.is_file():
        sys.exit(f"FUNCTION: there is no {file}")
    lines = file.read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if line and not line.startswith("#")]
    with tempfile.TemporaryDirectory() as scratch:
        versions = Path(scratch, "versions.txt")
        heads = (text.partition(" ")[0] for text in locked().values())
        versions.write_text("\n".join(heads), encoding="utf-8")
        report = Path(scratch, "report.json")
        options = ["--dry-run", "--ignore-installed", "--only-binary", ":all:", "--quiet"]
        asks = [sys.executable, "-m", "pip", "install", *options, "--no-build-isolation"]
        subprocess.run([*asks, "--report", report, "-c", versions, *asked], check=True)
        told = json.loads(report.read_text(encoding="utf-8"))
    names = {normalised(one["metadata"]["name"]) for one in told["install"]}
    return sorted(names - {"leaderboard"})


def main(arguments: list[str]) -> None:
    is_told = arguments[:1] == ["--only"]
    names = list(map(normalised, arguments[1:])) if is_told else wanted(*arguments)
    every = locked()
    for name in names:
        if name not in every:
            sys.exit(f"{LOCK}: has no {name}; make it anew (make lock)")
        print(every[name])


if __name__ == "__main__":
    main(sys.argv[1:])
