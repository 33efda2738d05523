"""Published jars of Apache Kafka, and of Kafka Connect with Debezium: fetched by Maven, checked
against committed SHA-256 sums."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from leaderboard.stack.process import StackError

KAFKA_VERSION: Final = "4.1.1"
DEBEZIUM_VERSION: Final = "3.3.1"


def project_root() -> Path:
    """The checkout that this package was installed from. Raises StackError outside of one."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "platform" / "kafka" / "pom.xml").is_file():
            return folder
    raise StackError("the stacks need the project's checkout: install it with `make`")


def kafka_jars(root: Path | None = None) -> Path:
    """The folder with Kafka's jars, fetched by Maven if it is not there yet.

    Every jar is compared with `platform/kafka/jars.sha256` at every call (0.2 s). Raises
    StackError when Maven is missing or fails, or when a jar is not the one we know."""
    return _jars(root or project_root(), "kafka", KAFKA_VERSION)


def connect_jars(root: Path | None = None) -> Path:
    """The same with `platform/outbox`: Kafka Connect and Debezium's connector for PostgreSQL."""
    return _jars(root or project_root(), "outbox", DEBEZIUM_VERSION)


def _jars(root: Path, name: str, version: str) -> Path:
    wanted = _wanted(root / "platform" / name / "jars.sha256")
    folder = root / ".cache" / name / version
    if not folder.is_dir():
        _fetch(root / "platform" / name / "pom.xml", folder, wanted)
    else:
        _check(folder, wanted)
    return folder


def _wanted(path: Path) -> dict[str, str]:
    pairs = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, name in pairs}


def _fetch(pom: Path, folder: Path, wanted: dict[str, str]) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError("Maven is missing: install it (Debian: apt-get install maven)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        jars = Path(scratch) / "jars"
        done = subprocess.run(
            [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies",
             f"-DoutputDirectory={jars}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            told = [line for line in done.stdout.splitlines() if "ERROR" in line]
            raise StackError(
                f"Maven could not fetch the jars of {pom}: {(told or ['no reason given'])[0]}"
            )
        _check(jars, wanted)
        jars.replace(folder)


def _check(folder: Path, wanted: dict[str, str]) -> None:
    found = {path.name: path for path in folder.glob("*.jar")}
    if odd := sorted(found.keys() ^ wanted.keys()):
        raise StackError(f"{folder}: {odd[0]} is missing or unknown; delete the folder")
    for name, path in found.items():
        with path.open("rb") as jar:
            digest = hashlib.file_digest(jar, "sha256").hexdigest()
        if digest != wanted[name]:
            raise StackError(f"{path} is not the jar that jars.sha256 names; delete the folder")


def main() -> int:
    """`python -m leaderboard.stack.kafka_jars [connect]`: fetch, check, print where they are."""
    try:
        print(connect_jars() if sys.argv[1:] == ["connect"] else kafka_jars())
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
