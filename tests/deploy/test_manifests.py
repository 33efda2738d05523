"""The manifests agree with the code: settings, probes, topics, groups, floors, who is public.

Nothing here asks a cluster: what an API server makes of them is another question."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from hosting import hosted
from leaderboard import settings
from leaderboard.errors import SettingsError
from leaderboard.events import TOPICS
from leaderboard.settings import ConsumerSettings, KafkaSettings, load
from leaderboard.stack.functions import FUNCTIONS
from leaderboard.stack.topics import PRODUCTION_PARTITIONS

ROOT = Path(__file__).parents[2]
KAFKA_FUNCTIONS = {one.name: one for one in FUNCTIONS if one.target is None}
HTTP_FUNCTIONS = {one.name: one for one in FUNCTIONS if one.target is not None}
PUBLIC = {"query"}
FLOOR, CEILING = 2, 50
OF_THE_HOST = {"THREADS", "WORKERS", "PORT"}
"""Read by functions-framework and gunicorn, not by us."""
Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def kinds_of(name: str) -> dict[str, Manifest]:
    """What kustomize would build for one function that reads Kafka, by kind."""
    folder = ROOT / "keda/base" / name
    (listed,) = documents(folder / "kustomization.yaml")
    found = [one for file in listed["resources"] for one in documents(folder / file)]
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def pod_of(name: str) -> Manifest:
    if name in KAFKA_FUNCTIONS:
        pod: Manifest = kinds_of(name)["Deployment"]["spec"]["template"]["spec"]
        return pod
    (service,) = documents(ROOT / "knative" / f"{name}.yaml")
    spec: Manifest = service["spec"]["template"]["spec"]
    return spec


def container_of(name: str) -> Manifest:
    (container,) = pod_of(name)["containers"]
    found: Manifest = container
    return found


def service_of(name: str) -> Manifest:
    (service,) = documents(ROOT / "knative" / f"{name}.yaml")
    return service


def read_by(name: str) -> dict[str, bool]:
    """Every setting that the function's `main.py` reads in this way of running, and whether it
    has to be there."""
    function = {**KAFKA_FUNCTIONS, **HTTP_FUNCTIONS}[name]
    tree = ast.parse((ROOT / "functions" / function.folder / "main.py").read_text("utf-8"))
    # What only the other host runs is not ours: `consume` is the Kafka host's.
    other = {"intake"} if function.target is None else {"consume"}
    body = [node for node in tree.body if getattr(node, "name", "") not in other]
    text = "\n".join(ast.unparse(node) for node in body)
    models = sorted(set(re.findall(r"\bload(?:_or_exit)?\((\w+), os\.environ\)", text)))
    assert models, f"{name} reads no settings?"
    found: dict[str, bool] = {}
    for model in models:
        found |= fields_of(model, name)
    return found


def fields_of(model: str, name: str) -> dict[str, bool]:
    described: type[BaseModel] | None = getattr(settings, model, None)
    if described is None:
        with hosted({**KAFKA_FUNCTIONS, **HTTP_FUNCTIONS}[name].folder) as one:
            described = getattr(one.main, model)
    return {
        field.alias: field.is_required()
        for field in described.model_fields.values()
        if field.alias is not None
    }


def settings_of(name: str) -> dict[str, Manifest]:
    return {one["name"]: one for one in container_of(name)["env"]}


def test_every_function_has_its_manifests() -> None:
    """And nothing is there that no function has."""
    folders = {path.name for path in (ROOT / "keda/base").iterdir() if path.is_dir()}
    assert folders == KAFKA_FUNCTIONS.keys()
    (base,) = documents(ROOT / "keda/base/kustomization.yaml")
    assert set(base["resources"]) == KAFKA_FUNCTIONS.keys()
    (listed,) = documents(ROOT / "knative/kustomization.yaml")
    services = {f"{name}.yaml" for name in HTTP_FUNCTIONS}
    assert set(listed["resources"]) == services | {"eventing/tournament-timer.yaml"}
    files = {path.stem for path in (ROOT / "knative").glob("*.yaml")}
    assert files - {"kustomization"} == HTTP_FUNCTIONS.keys()


def test_names_are_the_functions_names() -> None:
    for name in KAFKA_FUNCTIONS:
        kinds = kinds_of(name)
        assert kinds.keys() == {
            "Deployment",
            "ScaledObject",
            "TriggerAuthentication",
            "PodDisruptionBudget",
        }
        assert {one["metadata"]["name"] for one in kinds.values()} == {name}
        labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
        for kind in ("Deployment", "PodDisruptionBudget"):
            assert kinds[kind]["spec"]["selector"]["matchLabels"].items() <= labels
    for name in HTTP_FUNCTIONS:
        assert service_of(name)["kind"] == "Service"
        assert service_of(name)["metadata"]["name"] == name


@pytest.mark.parametrize("name", [*KAFKA_FUNCTIONS, *HTTP_FUNCTIONS])
def test_settings_given_are_the_settings_read(name: str) -> None:
    read, given = read_by(name), settings_of(name).keys()
    assert len(given) == len(container_of(name)["env"]), "a setting is given twice"
    assert given - OF_THE_HOST <= read.keys(), "given, and read by nobody"
    assert {one for one, required in read.items() if required} <= given, "missing"


@pytest.mark.parametrize("name", [*KAFKA_FUNCTIONS, *HTTP_FUNCTIONS])
def test_references_are_keys_of_the_example(name: str) -> None:
    example = {one["kind"]: one for one in documents(ROOT / "platform/settings/example.yaml")}
    keys = {
        "configMapKeyRef": example["ConfigMap"]["data"],
        "secretKeyRef": example["Secret"]["stringData"],
    }
    for setting, one in settings_of(name).items():
        if "value" in one:
            assert setting in OF_THE_HOST
            continue
        ((kind, reference),) = one["valueFrom"].items()
        assert reference["name"] == "leaderboard"
        assert reference["key"] == setting
        assert setting in keys[kind]


def test_secrets_are_never_in_the_config_map() -> None:
    secrets = {"REDIS_URL", "DATABASE_URL", "TOMBSTONE_KEY"}
    secrets |= {"KAFKA_SASL_PASSWORD", "KAFKA_SASL_USERNAME"}
    for name in [*KAFKA_FUNCTIONS, *HTTP_FUNCTIONS]:
        for setting, one in settings_of(name).items():
            assert ("secretKeyRef" in one.get("valueFrom", {})) == (setting in secrets)


def test_example_is_refused_until_its_secrets_are_filled_in() -> None:
    example = {one["kind"]: one for one in documents(ROOT / "platform/settings/example.yaml")}
    environ = {**example["ConfigMap"]["data"], **example["Secret"]["stringData"]}
    kafka = load(KafkaSettings, environ)
    assert kafka.security_protocol == "SASL_SSL"
    with pytest.raises(SettingsError, match="TOMBSTONE_KEY"):
        load(settings.TombstoneSettings, environ)
    environ["TOMBSTONE_KEY"] = "x" * 32
    for name in [*KAFKA_FUNCTIONS, *HTTP_FUNCTIONS]:
        if HTTP_FUNCTIONS.get(name):
            with hosted(HTTP_FUNCTIONS[name].folder, environ):
                pass


@pytest.mark.parametrize("name", [*KAFKA_FUNCTIONS, *HTTP_FUNCTIONS])
def test_images_have_the_version_of_the_project(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    function = {**KAFKA_FUNCTIONS, **HTTP_FUNCTIONS}[name]
    image = container_of(name)["image"]
    assert image == f"leaderboard/{function.folder}:{project['version']}"


@pytest.mark.parametrize("name", [*KAFKA_FUNCTIONS, *HTTP_FUNCTIONS])
def test_command_is_the_one_that_the_stacks_run(name: str) -> None:
    function = {**KAFKA_FUNCTIONS, **HTTP_FUNCTIONS}[name]
    container = container_of(name)
    command = [*container["command"], *container.get("args", [])]
    source = f"functions/{function.folder}/main.py"
    if function.target is None:
        assert command == ["python", source]
    else:
        wanted = ["functions-framework", "--source", source, "--target", function.target]
        assert command == wanted


@pytest.mark.parametrize("name", [*KAFKA_FUNCTIONS, *HTTP_FUNCTIONS])
def test_probes_ask_routes_that_exist(name: str) -> None:
    container = container_of(name)
    (port,) = container["ports"]
    default = ConsumerSettings.model_fields["port"].default
    assert port["containerPort"] == default
    if name in KAFKA_FUNCTIONS:
        assert settings_of(name)["PORT"]["value"] == str(default)
    else:
        assert "PORT" not in settings_of(name), "Knative sets it and refuses ours"
    paths = {kind: container[kind]["httpGet"]["path"] for kind in container if "Probe" in kind}
    assert paths["livenessProbe"] == "/healthz"
    assert paths["readinessProbe"] == "/readyz"
    assert set(paths.values()) == {"/healthz", "/readyz"}
    if name in HTTP_FUNCTIONS:
        with hosted(HTTP_FUNCTIONS[name].folder) as one:
            assert set(paths.values()) <= one.main.app.openapi()["paths"].keys()


@pytest.mark.parametrize("name", [*KAFKA_FUNCTIONS, *HTTP_FUNCTIONS])
def test_pods_are_confined(name: str) -> None:
    pod, container = pod_of(name), container_of(name)
    merged = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert merged["runAsNonRoot"] is True
    assert merged["readOnlyRootFilesystem"] is True
    assert merged["allowPrivilegeEscalation"] is False
    assert merged["capabilities"] == {"drop": ["ALL"]}
    assert merged["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    if name in KAFKA_FUNCTIONS:
        assert pod["terminationGracePeriodSeconds"] == 60


@pytest.mark.parametrize("name", KAFKA_FUNCTIONS)
def test_scaling_follows_the_lag_of_the_functions_own_topic(name: str) -> None:
    kinds = kinds_of(name)
    assert "replicas" not in kinds["Deployment"]["spec"], "the ScaledObject owns that number"
    scaled = kinds["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": name}
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (FLOOR, CEILING)
    assert scaled["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert scaled["fallback"]["replicas"] >= FLOOR
    assert "scaleUp" in scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (trigger,) = scaled["triggers"]
    metadata = trigger["metadata"]
    assert trigger["type"] == "kafka"
    assert all(isinstance(value, str) for value in metadata.values()), "KEDA takes strings only"
    source = (ROOT / "functions" / name / "main.py").read_text("utf-8")
    assert f'NAME = "{metadata["consumerGroup"]}"' in source, "the group is the function's name"
    assert metadata["topic"] in TOPICS
    topic = metadata["topic"].upper().replace("-", "_")
    several = re.search(r"^TOPICS = \((\w+), ", source, re.MULTILINE)
    first = "TOPICS" if several and several[1] == topic else topic
    assert f"KafkaHost(NAME, {first}, " in source
    assert metadata["ensureEvenDistributionOfPartitions"] == "true"
    for count in (FLOOR, scaled["fallback"]["replicas"], CEILING):
        assert PRODUCTION_PARTITIONS % count == 0
    assert metadata["offsetResetPolicy"] == "earliest", "as the host reads a new group"
    assert metadata["bootstrapServersFromEnv"] in settings_of(name)


@pytest.mark.parametrize("name", KAFKA_FUNCTIONS)
def test_scaler_speaks_to_kafka_as_the_function_does(name: str) -> None:
    kinds = kinds_of(name)
    (trigger,) = kinds["ScaledObject"]["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": name}
    given = kinds["TriggerAuthentication"]["spec"]["secretTargetRef"]
    known = settings_of(name)
    assert {one["parameter"] for one in given} == {"username", "password"}
    for one in given:
        assert known[one["key"]]["valueFrom"]["secretKeyRef"]["name"] == one["name"]
    example = documents(ROOT / "platform/settings/example.yaml")[0]["data"]
    spoken = example["KAFKA_SASL_MECHANISM"].lower().replace("-", "_")
    assert trigger["metadata"]["sasl"] == spoken.replace("sha_", "sha")
    assert trigger["metadata"]["tls"] == "enable"
    assert example["KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"


@pytest.mark.parametrize("name", HTTP_FUNCTIONS)
def test_only_query_is_public(name: str) -> None:
    """`erase` above all; but also the timer's route and the gateway's question want no token."""
    visibility = service_of(name)["metadata"]["labels"].get("networking.knative.dev/visibility")
    assert visibility == (None if name in PUBLIC else "cluster-local")


@pytest.mark.parametrize("name", HTTP_FUNCTIONS)
def test_http_functions_have_a_floor_and_a_ceiling(name: str) -> None:
    annotations = service_of(name)["spec"]["template"]["metadata"]["annotations"]
    assert annotations["autoscaling.knative.dev/min-scale"] == str(FLOOR)
    assert annotations["autoscaling.knative.dev/max-scale"] == str(CEILING)
    assert settings_of(name)["THREADS"]["value"] == annotations["autoscaling.knative.dev/target"]


def test_timer_sends_what_tournament_takes() -> None:
    """A PingSource posts `dev.knative.sources.ping` to the root of its sink."""
    (timer,) = documents(ROOT / "knative/eventing/tournament-timer.yaml")
    sink = timer["spec"]["sink"]["ref"]
    assert (sink["kind"], sink["name"]) == ("Service", "tournament")
    with hosted("tournament") as one:
        assert "dev.knative.sources.ping" in one.main.TIMER_TYPES
        assert "post" in one.main.app.openapi()["paths"]["/"]


MANIFESTS = [
    path
    for folder in ("keda", "knative", "platform/settings")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_manifest_is_whole(path: Path) -> None:
    for one in documents(path):
        assert {"apiVersion", "kind"} <= one.keys()
        assert ":latest" not in path.read_text("utf-8")
