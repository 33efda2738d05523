"""Rules and dashboards: what they ask exists, fires when it has to, and is in the runbook."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.checking.metrics import faults
from leaderboard.cli import dashboards
from leaderboard.cli.observability import files
from observing import FOLDER, PROMETHEUS, RULES

ROOT = Path(__file__).parents[2]
TESTS = ("rules.test.yaml", "baseline.test.yaml")


def alerts() -> dict[str, dict[str, Any]]:
    found = (rule for group in RULES["groups"] for rule in group["rules"])
    return {rule["alert"]: rule for rule in found if "alert" in rule}


def recorded() -> set[str]:
    found = (rule for group in RULES["groups"] for rule in group["rules"])
    return {rule["record"] for rule in found if "record" in rule}


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and its text."""
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for board in dashboards.ALL:
        for panel in board.panels:
            for query in panel.queries.values():
                yield f"{board.uid}: {panel.title}", query
        if board.variable is not None:
            yield board.uid, board.variable[1]


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_every_query_asks_for_what_is_declared(where: str, query: str) -> None:
    assert "leaderboard" in query
    assert list(faults(query, recorded())) == []


@pytest.mark.parametrize(
    "query",
    [
        "sum(rate(leaderboard_push_latencies_seconds_count[5m]))",
        "sum(rate(leaderboard_push_latency_seconds[5m]))",
        "sum(rate(leaderboard_events[5m]))",
        'sum(leaderboard_lag_records{consumer="on-wager"})',
        "leaderboard:push_slow:ratio_rate2h > 1",
        "leaderbord_lag_records > 0",
        'sum by (function) (rate(leaderboard_events{function=~"on-(wager|x)"}[5m] offset 1m))',
        "label_values(leaderboard_lags_records, topic)",
        'absent(leaderboard_lag_records{topic="leaderboard_x"}) or vector(leaderboard_x)',
    ],
)
def test_a_query_for_something_else_is_found(query: str) -> None:
    assert len(list(faults(query, recorded()))) == 1


# --- rules -------------------------------------------------------------------------------------


def promtool(*words: str, folder: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program is not None, "promtool is wanted (Debian: apt-get install prometheus)"
    return subprocess.run(
        [program, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_rules_are_rules() -> None:
    ended = promtool("check", "rules", "rules.yaml")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("file", TESTS)
def test_alerts_fire_when_they_have_to(file: str) -> None:
    ended = promtool("test", "rules", file)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def cases_of(alert: str) -> dict[str, Any]:
    """The tests that ask for this alert, as a file of their own."""
    for file in TESTS:
        given = yaml.safe_load((PROMETHEUS / file).read_text("utf-8"))
        cases = [one for one in given["tests"] if f'"{alert}"' in str(one["promql_expr_test"])]
        if cases:
            for one in cases:
                asked = one["promql_expr_test"]
                one["promql_expr_test"] = [q for q in asked if f'"{alert}"' in q["expr"]]
            return {**given, "tests": cases}
    raise AssertionError(f"no test asks for {alert}")


@pytest.mark.parametrize("alert", sorted(alerts()))
def test_an_alert_that_never_fires_or_always_is_found(alert: str, tmp_path: Path) -> None:
    """So each has a test in which it fires and one in which it does not."""
    (tmp_path / "few.test.yaml").write_text(yaml.safe_dump(cases_of(alert)), encoding="utf-8")
    for expression, is_sound in ((None, True), ("vector(0) > 1", False), ("vector(1)", False)):
        rules = copy.deepcopy(RULES)
        for group in rules["groups"]:
            for rule in group["rules"]:
                if rule.get("alert") == alert and expression is not None:
                    rule["expr"] = expression
                    rule.pop("for", None)
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
        ended = promtool("test", "rules", "few.test.yaml", folder=tmp_path)
        assert (ended.returncode == 0) is is_sound, f"{expression}: {ended.stdout}"


def test_the_operators_resource_holds_the_same_rules() -> None:
    resource = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text("utf-8"))
    assert resource["kind"] == "PrometheusRule"
    assert resource["spec"] == RULES


# --- the runbook -------------------------------------------------------------------------------


def sections(text: str) -> dict[str, str]:
    """Under `## Alerts`, each alert's section."""
    told = text.split("\n## Alerts\n", 1)[1].split("\n## ", 1)[0]
    _, *found = re.split(r"(?m)^### (\w+)$", told)
    return dict(zip(found[::2], found[1::2], strict=True))


def test_the_runbook_says_of_every_alert_what_it_means_and_what_to_do() -> None:
    told = sections((ROOT / "docs/runbook.md").read_text("utf-8"))
    assert told.keys() == alerts().keys()
    for name, text in told.items():
        for part in ("Meaning", "Look", "Act"):
            assert re.search(rf"(?m)^- \*\*{part}\.\*\* \S.{{10,}}$", text), f"{name}: {part}"
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_an_alert_that_the_runbook_does_not_know_is_found() -> None:
    text = (ROOT / "docs/runbook.md").read_text("utf-8")
    assert sections(text.replace("### DeadLetters\n", "")).keys() != alerts().keys()


# --- dashboards --------------------------------------------------------------------------------


def test_what_is_written_is_up_to_date() -> None:
    for path, text in files(ROOT).items():
        assert (ROOT / path).read_text("utf-8") == text, "run `leaderboard observability`"
    written = {path.name for path in (FOLDER / "dashboards").glob("*.json")}
    assert written == {f"{board.uid}.json" for board in dashboards.ALL}


def test_the_cluster_gets_every_dashboard() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text("utf-8"))
    (generated,) = kustomization["configMapGenerator"]
    written = {f"dashboards/{board.uid}.json" for board in dashboards.ALL}
    assert set(generated["files"]) == written
    for file in (*kustomization["resources"], *generated["files"]):
        assert (FOLDER / file).is_file()


@pytest.mark.parametrize("board", dashboards.ALL, ids=lambda board: board.uid)
def test_a_dashboard_is_what_grafana_loads(board: dashboards.Dashboard) -> None:
    body = json.loads(dashboards.document(board))
    assert body["uid"] == board.uid
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in body["panels"]]
    assert len(set(places)) == len(board.panels)
    names = {one["name"] for one in body["templating"]["list"]}
    for panel in body["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= names
