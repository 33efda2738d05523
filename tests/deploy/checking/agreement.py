"""Manifests against the code that they run: settings, commands, ports, probes, topics, groups."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import yaml
from pydantic import BaseModel

from deploy.checking.building import Built, Manifest, Problem, containers_of, pods_of
from deploy.checking.tools import ROOT
from hosting import hosted
from leaderboard import settings
from leaderboard.events import TOPICS
from leaderboard.settings import ConsumerSettings
from leaderboard.stack.functions import FUNCTIONS, Function
from leaderboard.stack.topics import LAPTOP_PARTITIONS, PRODUCTION_PARTITIONS

KAFKA_FUNCTIONS: Final = {one.name: one for one in FUNCTIONS if one.target is None}
HTTP_FUNCTIONS: Final = {one.name: one for one in FUNCTIONS if one.target is not None}
ALL: Final = {**KAFKA_FUNCTIONS, **HTTP_FUNCTIONS}
OF_THE_HOST: Final = {"THREADS", "WORKERS", "PORT"}
"""Read by functions-framework and gunicorn, not by us."""
BESIDES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "relay": (
        "leaderboard.producer",
        ("RelaySettings", "DatabaseSettings", "KafkaSettings"),
    ),
    "migrate": ("leaderboard.migrations", ("DatabaseSettings",)),
}
"""What runs a module of the package in a function's image, and the settings that it reads."""
DRAIN_SECONDS: Final = 60
"""Longer than the longest batch: its retries end with the signal, its calls have deadlines."""
_EXTRA_OF: Final = {
    "leaderboard.adapters.redis_": "redis",
    "leaderboard.adapters.kafka_": "kafka",
    "leaderboard.hosts.kafka": "kafka",
    "leaderboard.audit.": "audit",
    "leaderboard.wiring.log_stores_of": "audit",
    "leaderboard.adapters.sql_": "sql",
    "leaderboard.wiring.engine_of": "sql",
    "leaderboard.wiring.tokens_of": "http",
    "leaderboard.hosts.http": "http",
}
_EXTRAS_OF_MODULE: Final = {
    "leaderboard.producer": {"kafka", "sql"},
    "leaderboard.migrations": {"sql"},
}


def problems(built: Built) -> Iterator[Problem]:
    """Where a manifest says something else than the code does."""
    for one in built.manifests:
        pod = pods_of(one)
        name = one["metadata"]["name"]
        if pod is None or (name not in ALL and name not in BESIDES):
            continue
        (container,) = containers_of(pod)
        for check in (_settings, _references, _command, _image, _probes):
            for what in check(name, container):
                yield built.problem(one, what)
        drain = pod.get("terminationGracePeriodSeconds", 30)
        if one["kind"] == "Deployment" and drain < DRAIN_SECONDS:
            yield built.problem(one, f"has {drain} s to drain, and needs {DRAIN_SECONDS}")
    for one in built.of_kind("ScaledObject"):
        for what in _scaled(built, one):
            yield built.problem(one, what)
    for one in built.of_kind("PingSource"):
        for what in _timer(one):
            yield built.problem(one, what)


def missing(all_built: list[Built]) -> Iterator[Problem]:
    """Every function is in each environment, and nothing that scales or is scaled is left out."""
    for environment in ("development", "production"):
        found = {
            (m["kind"], m["metadata"]["name"])
            for built in all_built
            if built.environment == environment
            for m in built.manifests
        }
        wanted = {("Deployment", name) for name in KAFKA_FUNCTIONS}
        wanted |= {("ScaledObject", name) for name in KAFKA_FUNCTIONS}
        wanted |= {("Service", name) for name in HTTP_FUNCTIONS}
        wanted |= {("PingSource", "tournament-timer"), ("Job", "migrate")}
        for kind, name in sorted(wanted - found):
            yield Problem(environment, f"has no {kind} {name}")
        yield from _nowhere(environment, all_built)


def _nowhere(environment: str, all_built: list[Built]) -> Iterator[Problem]:
    """Namespaces that are written to and that the environment's own platform does not make."""
    own = [one for one in all_built if one.environment == environment]
    made = {m["metadata"]["name"] for one in own for m in one.of_kind("Namespace")}
    for one in own:
        used = {m["metadata"].get("namespace") for m in one.manifests} - made - {None}
        for name in sorted(used):
            yield Problem(one.folder, f"writes to namespace {name}, which its platform has not")


# --- settings ------------------------------------------------------------------------------------


@cache
def read_by(name: str) -> dict[str, bool]:
    """Every setting that the function's `main.py` reads in this way of running, and whether it
    has to be there."""
    found: dict[str, bool] = {}
    if name in BESIDES:
        for model in BESIDES[name][1]:
            found |= _aliases(getattr(settings, model))
        return found
    function = ALL[name]
    tree = ast.parse((ROOT / "functions" / function.folder / "main.py").read_text("utf-8"))
    # What only the other host runs is not ours: `consume` is the Kafka host's.
    other = {"intake"} if function.target is None else {"consume"}
    body = [node for node in tree.body if getattr(node, "name", "") not in other]
    text = "\n".join(ast.unparse(node) for node in body)
    models = sorted(set(re.findall(r"\bload(?:_or_exit)?\((\w+), os\.environ\)", text)))
    assert models, f"{name} reads no settings?"
    for model in models:
        described: type[BaseModel] | None = getattr(settings, model, None)
        if described is None:
            with hosted(function.folder) as one:
                described = getattr(one.main, model)
        found |= _aliases(described)
    return found


def _aliases(model: type[BaseModel]) -> dict[str, bool]:
    return {f.alias: f.is_required() for f in model.model_fields.values() if f.alias is not None}


def _settings(name: str, container: Manifest) -> Iterator[str]:
    read = read_by(name)
    given = {one["name"] for one in container.get("env", [])}
    for one in sorted(given - OF_THE_HOST - read.keys()):
        yield f"sets {one}, which {name} does not read"
    for one in sorted({n for n, required in read.items() if required} - given):
        yield f"does not set {one}, without which {name} does not start"


@cache
def example() -> dict[tuple[str, str], dict[str, str]]:
    """By kind and name what `platform/settings/example.yaml` tells people to make."""
    text = (ROOT / "platform/settings/example.yaml").read_text("utf-8")
    return {
        (one["kind"], one["metadata"]["name"]): one.get("data") or one.get("stringData") or {}
        for one in yaml.safe_load_all(text)
    }


def _references(name: str, container: Manifest) -> Iterator[str]:
    kinds = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}
    for one in container.get("env", []):
        for source, reference in one.get("valueFrom", {}).items():
            kind = kinds.get(source)
            if kind is None:
                continue
            named, key = reference["name"], reference["key"]
            if key not in example().get((kind, named), {}):
                yield f"{one['name']}: {kind} {named} with {key} is not in platform/settings"
            if key != one["name"] and named != f"kafka-{name}":
                yield f"{one['name']} is taken from {key}"
        if one["name"] == "KAFKA_SASL_USERNAME" and one.get("value") != name:
            yield f"KAFKA_SASL_USERNAME has to be {name}: each function is a user of its own"


# --- what runs -----------------------------------------------------------------------------------


def _command(name: str, container: Manifest) -> Iterator[str]:
    command = [*container.get("command", []), *container.get("args", [])]
    if name in BESIDES:
        wanted = ["python", "-m", BESIDES[name][0]]
    else:
        function = ALL[name]
        source = f"functions/{function.folder}/main.py"
        wanted = ["python", source]
        if function.target is not None:
            wanted = ["functions-framework", "--source", source, "--target", function.target]
    if command != wanted:
        yield f"runs {' '.join(command)}, and the stacks {' '.join(wanted)}"


def _image(name: str, container: Manifest) -> Iterator[str]:
    image = re.split(r"[:@]", container.get("image", "").rpartition("/")[2])[0]
    function = ALL.get(name)
    if function is not None:
        if image != function.folder:
            yield f"image {container.get('image')} is not that of {function.folder}"
            return
        needed = _extras_needed(function)
    else:
        needed = _EXTRAS_OF_MODULE[BESIDES[name][0]]
    lacking = needed - _extras_of(image)
    if lacking:
        yield f"image {image} is built without the extra {', '.join(sorted(lacking))}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    # A registry's own name, tag and digest are the engineer's; ours has the project's version.
    tag = re.fullmatch(r"leaderboard/[\w-]+:([\w.-]+)", container.get("image", ""))
    if tag and tag[1] not in (project, "latest"):
        yield f"image {container['image']}: the project's version is {project}"


@cache
def _extras_of(folder: str) -> set[str]:
    text = (ROOT / "functions" / folder / "requirements.txt").read_text("utf-8")
    found = re.search(r"^\.\[([\w,-]+)\]", text, re.MULTILINE)
    return set(found[1].split(",")) if found else set()


@cache
def _extras_needed(function: Function) -> set[str]:
    needed: set[str] = set()
    for path in (ROOT / "functions" / function.folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found = (e for start, e in _EXTRA_OF.items() for n in names if n.startswith(start))
                needed.update(found)
    return needed


def _probes(name: str, container: Manifest) -> Iterator[str]:
    if name == "migrate":
        return
    port = ConsumerSettings.model_fields["port"].default
    ports = container.get("ports", [])
    if [one["containerPort"] for one in ports] != [port]:
        yield f"has to have one port, {port}"
    own = {one["name"]: one.get("value") for one in container.get("env", [])}
    if name in HTTP_FUNCTIONS and "PORT" in own:
        yield "sets PORT, which Knative sets itself and refuses"
    if name not in HTTP_FUNCTIONS and own.get("PORT") != str(port):
        yield f"PORT has to be {port}, as the container's port"
    wanted = {"livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    if name not in HTTP_FUNCTIONS:
        wanted["startupProbe"] = "/healthz"
    for probe, path in wanted.items():
        asked = container.get(probe, {}).get("httpGet", {}).get("path")
        if asked != path:
            yield f"{probe} asks {asked}, and has to ask {path}"


# --- scaling and time ----------------------------------------------------------------------------


def _scaled(built: Built, one: Manifest) -> Iterator[str]:
    name = one["metadata"]["name"]
    if name not in KAFKA_FUNCTIONS:
        return
    types = [trigger["type"] for trigger in one["spec"]["triggers"]]
    if sorted(types) != ["kafka", "metrics-api"]:
        yield "has to have two triggers: lag (kafka) and the floor (metrics-api)"
    partitions = one["metadata"].get("annotations", {}).get("leaderboard.io/partitions")
    known = {"production": PRODUCTION_PARTITIONS, "development": LAPTOP_PARTITIONS}
    if built.environment in known and partitions != str(known[built.environment]):
        yield f"the topics of {built.environment} have {known[built.environment]} partitions"
    for trigger in one["spec"]["triggers"]:
        if trigger["type"] == "kafka":
            yield from _lag(built, name, trigger)


def _lag(built: Built, name: str, trigger: Manifest) -> Iterator[str]:
    metadata = trigger["metadata"]
    source = (ROOT / "functions" / name / "main.py").read_text("utf-8")
    group, topic = metadata.get("consumerGroup"), metadata.get("topic")
    if f'NAME = "{group}"' not in source:
        yield f"consumerGroup {group}: {name}'s is its own name"
    if topic not in TOPICS:
        yield f"topic {topic}: there is none of this name"
    elif _first_topic(name) != topic.upper().replace("-", "_"):
        yield f"topic {topic}: {name} does not read it first"
    if metadata.get("offsetResetPolicy") != "earliest":
        yield "offsetResetPolicy has to be earliest, as the host reads a new group"
    variable = metadata.get("bootstrapServersFromEnv")
    deployment = built.find("Deployment", name)
    env: list[dict[str, Any]] = []
    if deployment is not None:
        env = deployment["spec"]["template"]["spec"]["containers"][0].get("env", [])
    if variable not in {one["name"] for one in env}:
        yield f"bootstrapServersFromEnv {variable}: {name} has no such setting"
    if built.environment == "production":
        spoken = (metadata.get("sasl"), metadata.get("tls"))
        if spoken != ("scram_sha512", "enable") or "authenticationRef" not in trigger:
            yield "has to speak SCRAM-SHA-512 over TLS with its TriggerAuthentication"


@cache
def _first_topic(name: str) -> str | None:
    """The constant of the topic that the function's host is given (first)."""
    tree = ast.parse((ROOT / "functions" / name / "main.py").read_text("utf-8"))
    tuples = {
        target.id: node.value.elts[0]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple) and node.value.elts
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "KafkaHost":
            given = node.args[1]
            first = tuples.get(ast.unparse(given), given)
            return ast.unparse(first)
    return None


def _timer(one: Manifest) -> Iterator[str]:
    """A PingSource posts `dev.knative.sources.ping` to the root of its sink."""
    sink = one["spec"]["sink"].get("ref", {})
    if (sink.get("kind"), sink.get("name")) != ("Service", "tournament"):
        yield "has to send to the Service tournament"
        return
    if not _takes_pings():
        yield "sends what tournament does not take"


@cache
def _takes_pings() -> bool:
    with hosted("tournament") as running:
        takes = "dev.knative.sources.ping" in running.main.TIMER_TYPES
        return takes and "post" in running.main.app.openapi()["paths"].get("/", {})
