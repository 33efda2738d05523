"""The image recipe and compose.yaml agree with the code; what they are given is checked before."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit_logs import SIGNER
from hosting import hosted
from images.__main__ import command_of
from leaderboard import settings
from leaderboard.settings import load
from leaderboard.stack.functions import FUNCTIONS, SERVER_PORTS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "functions/Dockerfile").read_text("utf-8")
FOLDERS = sorted({one.folder for one in FUNCTIONS})
RUN = {one.folder: one for one in reversed(FUNCTIONS)}
"""How an image runs without being told: `on-wager` as the consumer."""
RUN |= {one.folder: one for one in FUNCTIONS if one.target is None}
KEY = "0123456789abcdef0123456789abcdef"


def stages() -> list[str]:
    return re.split(r"(?m)^FROM ", DOCKERFILE)[1:]


def test_base_is_given_and_the_same_for_both_stages() -> None:
    assert re.findall(r"(?m)^ARG BASE.*$", DOCKERFILE) == ["ARG BASE"]
    assert [one.split("\n", 1)[0] for one in stages()] == ["${BASE} AS build", "${BASE}"]


def test_image_runs_as_nobody_and_knows_how_it_is() -> None:
    final = stages()[-1]
    assert re.findall(r"(?m)^USER (.*)$", final) == ["65532:65532"]
    (command,) = re.findall(r"(?m)^HEALTHCHECK .* CMD (.*)$", final)
    assert command == '["python", "functions/healthy.py"]'
    assert "RUN" not in re.findall(r"(?m)^(\w+) ", final), "nothing is made in the last stage"


def test_only_hashed_wheels_get_in() -> None:
    for line in re.findall(r"pip[^&]*? install [^&]*", DOCKERFILE.replace("\\\n", " ")):
        is_ours = "dist/*.whl" in line
        assert is_ours or {"--require-hashes", "--only-binary"} <= set(line.split()), line


@pytest.mark.parametrize("folder", FOLDERS)
def test_image_runs_as_the_manifests_run_it(folder: str, tmp_path: Path) -> None:
    script = DOCKERFILE.rpartition("\nCMD ")[2].replace("\\\n", " ")
    for name in ("python", "functions-framework"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FUNCTION": folder}
    told = subprocess.run(
        ["/bin/sh", "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == command_of(RUN[folder])


def test_builder_gets_sources_only() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "what is not named stays out"
    kept = {line.removeprefix("!") for line in rules if line.startswith("!")}
    copied = re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", DOCKERFILE)
    assert kept == {name.partition("/")[0] for line in copied for name in line.split()}


# --- what of the lock a function gets ----------------------------------------------------------


def locked(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    program = str(ROOT / "functions/locked.py")
    return subprocess.run(
        [sys.executable, program, *words], cwd=folder, capture_output=True, text=True, check=False
    )


def test_part_of_the_lock_has_its_hashes() -> None:
    told = locked("--only", "setuptools", "Typing_Extensions")
    assert told.returncode == 0
    whole = (ROOT / "requirements.lock").read_text("utf-8")
    heads = re.findall(r"(?m)^\S+==\S+", told.stdout)
    assert [one.partition("==")[0] for one in heads] == ["setuptools", "typing-extensions"]
    assert all(one in whole for one in told.stdout.splitlines())
    assert told.stdout.count("--hash=sha256:") >= 4


def test_what_the_lock_does_not_have_is_named(tmp_path: Path) -> None:
    told = locked("--only", "leftpad")
    assert (told.returncode, told.stdout) == (1, "")
    assert "has no leftpad" in told.stderr
    told = locked("no-such-function")
    assert told.returncode == 1
    assert "FUNCTION: there is no functions/no-such-function/requirements.txt" in told.stderr


@pytest.mark.parametrize("folder", [*FOLDERS, "tools"])
def test_extras_that_an_image_asks_for_exist(folder: str) -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    file = "tools-requirements.txt" if folder == "tools" else f"{folder}/requirements.txt"
    lines = (ROOT / "functions" / file).read_text("utf-8").splitlines()
    (line,) = [one for one in lines if not one.startswith("#")]
    match = re.fullmatch(r"\.\[([a-z,-]+)\]", line)
    assert match
    for extra in match[1].split(","):
        assert re.search(rf"(?m)^{extra} = \[", text), extra


@pytest.mark.parametrize("folder", FOLDERS)
def test_who_publishes_can_publish_to_azure(folder: str) -> None:
    source = (ROOT / "functions" / folder / "main.py").read_text("utf-8")
    extras = (ROOT / "functions" / folder / "requirements.txt").read_text("utf-8")
    assert "gateway_of(" not in source or "http" in extras or "web-pubsub" in extras


@pytest.mark.parametrize("folder", FOLDERS)
def test_who_reads_the_setting_of_traces_can_send_them(folder: str) -> None:
    source = (ROOT / "functions" / folder / "main.py").read_text("utf-8")
    extras = (ROOT / "functions" / folder / "requirements.txt").read_text("utf-8")
    assert ("TracingSettings" in source) == ("tracing" in extras)


# --- the base image ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "digests", "said"),
    [
        ("", None, "BASE: is missing"),
        ("python:3.11-slim", None, "no @sha256: and is not on this machine"),
        (
            "python:3.11-slim",
            "python@sha256:12 ",
            "wanted is one of: python@sha256:12",
        ),
        ("base:bookworm", "", None),
        ("python@sha256:12", None, None),
    ],
)
def test_base_that_could_be_another_one_tomorrow_is_refused(
    base: str, digests: str | None, said: str | None, tmp_path: Path
) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\n" + ("exit 1\n" if digests is None else f"echo '{digests}'\n"))
    docker.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "functions/pinned"), base, str(docker)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if said is None else 2)
    assert (said or "") in done.stderr


def test_make_images_asks_that_first() -> None:
    make = shutil.which("make")
    assert make
    environ = {name: text for name, text in os.environ.items() if name != "BASE"}
    done = subprocess.run(
        [make, "images", "FUNCTION=query", "DOCKER=false"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "BASE: is missing" in done.stderr


# --- compose.yaml ------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    return found


def environ_of(name: str) -> dict[str, str]:
    told = compose()["services"][name]["environment"]
    given = {"TOMBSTONE_KEY": KEY, "AUDIT_SIGNING_KEY": SIGNER.private_text()}
    wanted = re.compile(r"^\$\{(TOMBSTONE_KEY|AUDIT_SIGNING_KEY):\?.*\}$")
    environ = {key: wanted.sub(lambda one: given[one[1]], text) for key, text in told.items()}
    assert not any("$" in text for text in environ.values())
    return environ


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.name)
def test_compose_runs_every_function_as_the_stacks_do(function: Any) -> None:
    service = compose()["services"][function.name]
    assert service["command"] == command_of(function)
    assert environ_of(function.name)["PORT"] == str(function.default_port)
    assert service["network_mode"] == "host"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    environ = environ_of(function.name)
    assert environ["HOST"] == "127.0.0.1", "an issuer that gives anyone any role is loopback only"
    if function.target is None:
        for model in ("KafkaSettings", "RedisSettings", "DatabaseSettings", "GatewaySettings"):
            load(getattr(settings, model), environ)
        if function.name == "archive":
            load(settings.AuditWriterSettings, environ)
    else:
        with hosted(function.folder, environ):
            pass


def test_compose_has_the_ports_of_the_stacks() -> None:
    text = (ROOT / "compose.yaml").read_text("utf-8")
    for port in SERVER_PORTS.values():
        assert str(port) in text
    listening = environ_of("kafka")["KAFKA_LISTENERS"].split(",")
    places = [one.rpartition("//")[2] for one in listening]
    config = (ROOT / "compose/nginx.conf").read_text("utf-8")
    places += re.findall(r"(?m)^\s*listen (\S+);", config)
    assert len(places) == 4
    assert all(one.startswith("127.0.0.1:") for one in places)


def test_no_image_is_the_latest() -> None:
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert version
    for name, service in compose()["services"].items():
        image, _, tag = service["image"].rpartition(":")
        assert image, f"{name} has no tag"
        assert re.fullmatch(r"\d+(\.\d+)+", tag)
        assert not image.startswith("leaderboard/") or tag == version[1]
