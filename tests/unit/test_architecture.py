"""The arrows and limits of the code base, enforced by reading it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "shared/leaderboard"
CORE = {
    "model",
    "scoring",
    "ranking",
    "terms",
    "fold",
    "events",
    "codec",
    "codec_writing",
    "schemas",
    "ports",
}
CORE |= {"errors", "frames", "audit", "partitioning", "dead_letters", "record_ports", "prewarming"}
CORE |= {"audit_leaves", "callers", "repetitions"}
CORE |= {"audit_replay", "audit_accounts", "audit_record", "audit_boards", "audit_rebuild"}
CORE |= {"fraud", "fraud_rules", "fraud_ports", "fraud_tables"}
CORE |= {"audit_suspicions", "audit_beside", "audit_alerts"}
LEAVES = {"settings", "setting_values", "telemetry"}
JOINING = {"door", "guard", "reads", "rebuild"}
"""What several functions make of several ports; they know no adapter."""
CORE_LIBRARIES = {"pydantic", "pydantic_core", "sortedcontainers"}
AUDIT_LIBRARIES = {"cryptography"}
"""Signatures: of bytes, without any effect."""
NO_CORE = {"os", "socket", "subprocess", "threading", "asyncio", "time", "random", "secrets"}
NO_CORE |= {"logging", "tempfile", "urllib.request", "http"}
FRAMEWORKS = {"functions_framework", "flask", "werkzeug", "cloudevents", "kubernetes", "gunicorn"}
DRIVERS = {"redis", "confluent_kafka", "httpx", "joserfc", "aiohttp", "msgpack"}
LONGEST_FUNCTION = 70
LONGEST_MODULE = 500

MODULES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = sorted((ROOT / "functions").glob("*/*.py"))
ALL = [*MODULES, *FUNCTIONS]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of all that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """First parts below `leaderboard` of what a module imports, e.g. {"model", "adapters"}."""
    names = {one.split(".")[1] for one in imports_of(path) if one.startswith("leaderboard.")}
    known = {one.stem for one in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir()}
    return names & known


def foreign(path: Path) -> set[str]:
    return {one.split(".")[0] for one in imports_of(path)} - {"leaderboard"}


def in_folder(name: str) -> list[Path]:
    return [path for path in MODULES if path.parent.name == name]


CORE_MODULES = [path for path in MODULES if path.parent == PACKAGE and path.stem in CORE]
CORE_MODULES += in_folder("audit")


@pytest.mark.parametrize("path", CORE_MODULES, ids=name_of)
def test_core_imports_only_core(path: Path) -> None:
    assert ours(path) <= CORE


@pytest.mark.parametrize("path", CORE_MODULES, ids=name_of)
def test_core_has_no_effects_no_clock_and_no_chance(path: Path) -> None:
    import sys

    libraries = CORE_LIBRARIES | (AUDIT_LIBRARIES if path.parent.name == "audit" else set())
    assert foreign(path) - set(sys.stdlib_module_names) <= libraries
    assert not set(imports_of(path)) & NO_CORE
    text = path.read_text(encoding="utf-8")
    assert not any(clock in text for clock in ("datetime.now(", "utcnow(", "date.today("))


def test_settings_and_telemetry_are_leaves() -> None:
    assert ours(PACKAGE / "settings.py") <= {"errors", "setting_values"}
    assert ours(PACKAGE / "setting_values.py") <= set()
    assert ours(PACKAGE / "telemetry.py") <= set()


@pytest.mark.parametrize("path", in_folder("adapters"), ids=name_of)
def test_adapters_know_the_core_and_each_other_only(path: Path) -> None:
    assert ours(path) <= CORE | LEAVES | {"adapters"}
    assert not foreign(path) & FRAMEWORKS


@pytest.mark.parametrize("name", sorted(JOINING))
def test_what_joins_ports_knows_no_adapter(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    assert ours(path) <= CORE | LEAVES | JOINING
    assert not foreign(path) & (FRAMEWORKS | DRIVERS)


@pytest.mark.parametrize("path", in_folder("hosts"), ids=name_of)
def test_hosts_know_no_adapter(path: Path) -> None:
    assert ours(path) <= CORE | LEAVES | {"hosts"}
    assert "redis" not in foreign(path)


@pytest.mark.parametrize("path", FUNCTIONS, ids=name_of)
def test_functions_import_no_framework_and_no_driver(path: Path) -> None:
    """Hosts bring the framework, adapters the drivers; `flask` only as the type of a request."""
    assert not foreign(path) & (FRAMEWORKS - {"flask"} | DRIVERS)
    assert ours(path) <= CORE | LEAVES | JOINING | {"adapters", "hosts", "wiring"}


@pytest.mark.parametrize("path", in_folder("producer"), ids=name_of)
def test_producer_brings_a_game_platform_its_two_libraries_only(path: Path) -> None:
    """What is run there without them is shown in tests/unit/test_producer.py."""
    import sys

    assert ours(path) <= CORE | LEAVES | {"producer", "hosts"}
    hosts = {one for one in imports_of(path) if one.startswith("leaderboard.hosts")}
    assert hosts <= {"leaderboard.hosts.health", "leaderboard.hosts.health.HealthServer"}
    assert foreign(path) - set(sys.stdlib_module_names) <= {"sqlalchemy", "confluent_kafka"}


def test_nothing_but_stacks_and_commands_knows_the_stacks() -> None:
    for path in ALL:
        if {"stack", "cli"} & ours(path):
            inside = path.relative_to(PACKAGE).parts[0] if path.is_relative_to(PACKAGE) else ""
            assert inside in ("stack", "cli", "cli.py"), name_of(path)


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_functions_and_modules_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert path.name == "__init__.py" or ast.get_docstring(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_names_say_roles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            lowered = node.name.lower()
            assert not any(word in lowered for word in ("mock", "manager", "util", "helper"))
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            if any(base.endswith(("Error", "Exception")) for base in bases):
                assert node.name.endswith("Error"), node.name


def test_entry_of_every_function_is_named_like_its_folder() -> None:
    """Asked over HTTP by the folder's name in snake_case; fed by Kafka through `consume`."""
    for main in sorted((ROOT / "functions").glob("*/main.py")):
        body = ast.parse(main.read_text(encoding="utf-8")).body
        names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        assert names & {main.parent.name.replace("-", "_"), "consume"}, name_of(main)


def test_every_function_lets_the_collector_rest_while_it_starts() -> None:
    """What is imported before that is looked through for garbage again and again."""
    for main in sorted((ROOT / "functions").glob("*/main.py")):
        body = ast.parse(main.read_text(encoding="utf-8")).body
        imports = [one for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
        first = next(one for one in imports if getattr(one, "module", "") != "__future__")
        assert ast.unparse(first) == "import leaderboard.hosts.starting", name_of(main)
