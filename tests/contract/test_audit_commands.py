"""`leaderboard audit` by its real command, over a log, a record and boards in files: what an
auditor types, what is answered, and what is said when something is wrong."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from audited import ORIGIN, AuditedPlay
from contract.test_audit_beside import attempted, reviewed
from integration.test_f1 import read_results, round_events, season_schedule
from leaderboard import events as ev
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms
from leaderboard.audit.reader import AuditReader
from leaderboard.audit.tree import leaf_hash
from leaderboard.audit_leaves import decode
from leaderboard.events import CONNECTIONS, FRAUD_ALERTS, POSITION_CHANGES, WAGERS
from leaderboard.fold import LogEntry
from leaderboard.model import Offset, Place
from leaderboard.record_ports import Head
from logs import START_MS, TOMBSTONE_KEY
from records import engine_of, interleaved, loaded
from running import command

VERIFIER = Path(__file__).parents[2] / "docs/audit/verify.py"
SEASON = 2023
F1 = f"f1-{SEASON}"


def f1_log(first: int) -> list[LogEntry]:
    """A season's results, as the log holds them from offset `first` on."""
    events = [season_schedule(F1, SEASON)]
    for at, results in sorted(read_results().items()):
        if at[0] == SEASON:
            events += round_events(F1, at, results)
    return [LogEntry(Offset(first + n), START_MS, event) for n, event in enumerate(events)]


class Audited:
    """A folder with all that the commands are told of by settings."""

    def __init__(self, folder: Path, play: AuditedPlay, f1: list[LogEntry]) -> None:
        self.folder, self.play, self.f1 = folder, play, f1
        self.first = decode(play.entries(WAGERS)[0]).offset
        self.settings = {
            "AUDIT_LOG_URL": (folder / "log").as_uri(),
            "AUDIT_LOG_ORIGIN": ORIGIN,
            "AUDIT_PUBLIC_KEY": str(play.signer.verifier),
            "DATABASE_URL": f"sqlite:///{folder / 'record.sqlite'}",
            "TOMBSTONE_KEY": TOMBSTONE_KEY.decode(),
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = command(["audit", *words], self.folder, self.settings)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def reader(self, topic: str) -> AuditReader:
        place = Place(topic, 0)
        key = self.play.signer.verifier
        return AuditReader.open(self.play.store(place), f"{ORIGIN}/{place}", key)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    """A random play and a Formula 1 season, in one partition; erased players' keys destroyed."""
    folder = tmp_path_factory.mktemp("audited")
    with engine_of(loaded(f"sqlite:///{folder / 'record.sqlite'}")) as engine:
        play = AuditedPlay(folder / "log", engine, MemoryBoard(TOMBSTONE_KEY))
        log = interleaved(6, tournaments=2, length=80)
        play.take(log)
        f1 = f1_log(log[-1].offset + 1)
        play.take(f1)
        play.destroy_keys()
        SqlPseudonyms(engine, TOMBSTONE_KEY).put_heads(
            [
                Head(
                    f"{ORIGIN}/{place}", place, one.checkpoint.size, one.checkpoint.root.hex(),
                    Offset(0),
                )
                for place, one in play.logs.items()
                if one.checkpoint is not None
            ]
        )  # fmt: skip
        yield Audited(folder, play, f1)


@pytest.fixture
def copied(audited: Audited, tmp_path: Path) -> Audited:
    """The same to be spoiled."""
    shutil.copytree(audited.folder, tmp_path / "copy")
    made = Audited(tmp_path / "copy", audited.play, audited.f1)
    made.settings["AUDIT_PUBLIC_KEY"] = audited.settings["AUDIT_PUBLIC_KEY"]
    return made


def offline(folder: Path, proof: bytes, key: str) -> subprocess.CompletedProcess[str]:
    """The stand-alone verifier in a folder with nothing but itself, the file and the key."""
    folder.mkdir(exist_ok=True)
    shutil.copy(VERIFIER, folder / "verify.py")
    (folder / "wager.tlog-proof").write_bytes(proof)
    (folder / "key.txt").write_text(key, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-I", "verify.py", "wager.tlog-proof", "key.txt"],
        cwd=folder, env={}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# --- prove ---------------------------------------------------------------------------------------


def test_wager_of_the_f1_replay_is_proved_offline_and_one_changed_bit_is_refused(
    audited: Audited, tmp_path: Path
) -> None:
    chance = random.Random(1)
    one = chance.choice(audited.f1[1:])
    file = tmp_path / "proof"
    done = audited.run(
        "prove", "--source", one.event.source, "--id", one.event.id, "--out", str(file)
    )
    assert done.returncode == 0, done.stderr
    proof, key = file.read_bytes(), audited.settings["AUDIT_PUBLIC_KEY"]
    found = offline(tmp_path / "clean", proof, key)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("PROVED:")
    assert f'"offset":{one.offset},' in found.stdout
    assert one.event.id not in found.stdout  # nor anything that names the driver
    for _ in range(10):
        at = chance.randrange(len(proof))
        wrong = bytearray(proof)
        wrong[at] ^= 1 << chance.randrange(8)
        refused = offline(tmp_path / "clean", bytes(wrong), key)
        assert refused.returncode == 1, f"byte {at}: {refused.stdout}"
        assert refused.stderr.startswith("REFUSED:")


def test_opening_shows_that_a_leaf_is_this_event_of_this_player(
    audited: Audited, tmp_path: Path
) -> None:
    """By the text of docs/audit-commands.md, with nothing of ours."""
    event = audited.f1[31].event
    proof, opening = tmp_path / "proof", tmp_path / "opening.json"
    done = audited.run(
        "prove", "--source", event.source, "--id", event.id,
        "--out", str(proof), "--opening", str(opening),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = json.loads(opening.read_text())
    assert (opened["id"], json.loads(opened["data"])["player_id"]) == (event.id, event.player_id)
    (tmp_path / "leaf.json").write_text(done.stdout.splitlines()[0])
    page = (VERIFIER.parents[1] / "audit-commands.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    run = [sys.executable, "-I", "-c", code]
    assert subprocess.run(run, cwd=tmp_path, check=False).returncode == 0
    opening.write_text(json.dumps({**opened, "data": opened["data"].replace("2023", "2024")}))
    wrong = subprocess.run(run, cwd=tmp_path, capture_output=True, check=False)
    assert b"AssertionError" in wrong.stderr
    # Of an erased player nothing opens any more.
    gone = decode(next(
        raw for raw in audited.play.entries(WAGERS) if b'"type":"player.erased"' in raw
    ))  # fmt: skip
    index = [decode(raw).offset for raw in audited.play.entries(WAGERS)].index(gone.offset)
    words = ("--out", str(proof), "--opening", str(opening))
    refused = audited.run("prove", "--entry", f"wagers/0:{index}", *words)
    assert (refused.returncode, "the key destroyed" in refused.stderr) == (1, True), refused.stderr


@pytest.mark.parametrize("with_record", [True, False])
def test_rank_change_and_wager_are_found_with_a_record_and_without(
    audited: Audited, tmp_path: Path, with_record: bool
) -> None:
    changes = audited.reader(POSITION_CHANGES)
    settings = dict(audited.settings)
    if not with_record:
        del settings["DATABASE_URL"]
    bare = Audited(audited.folder, audited.play, audited.f1)
    bare.settings = settings
    file = tmp_path / "proof"
    sequence = audited.f1[5].offset
    done = bare.run("prove", "--tournament", F1, "--sequence", str(sequence), "--out", str(file))
    assert done.returncode == 0, done.stderr
    assert f'"sequence":{sequence}' in done.stdout
    assert f"of {changes.size:,} in {ORIGIN}/position-changes/0" in done.stdout
    assert (
        offline(tmp_path / "one", file.read_bytes(), settings["AUDIT_PUBLIC_KEY"]).returncode == 0
    )
    event = audited.f1[9].event
    done = bare.run("prove", "--source", event.source, "--id", event.id, "--out", str(file))
    assert done.returncode == 0, done.stderr
    assert f'"offset":{audited.f1[9].offset},' in done.stdout
    done = bare.run("prove", "--entry", "wagers/0:3", "--out", str(file))
    assert (done.returncode, "entry 3 of" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (["--source", "/tests", "--id", "no-such"], "the log has no event 'no-such'", 1),
        (["--tournament", F1, "--sequence", "1"], f"no position change {F1}/1", 1),
        (["--tournament", "not an id", "--sequence", "1"], "is no id", 1),
        (["--entry", "wagers/0:99999"], "and no number 99999", 1),
        (["--entry", "wagers"], "is no entry like", 2),
        (["--source", "/tests"], "name --source and --id", 2),
        (["--tournament", F1], "name --source and --id", 2),
        ([], "name --source and --id", 2),
    ],
)
def test_what_cannot_be_proved_is_said(
    audited: Audited, words: list[str], told: str, code: int
) -> None:
    done = audited.run("prove", *words)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr


# --- verify --------------------------------------------------------------------------------------


def test_untouched_log_verifies_with_quiet_bars(audited: Audited) -> None:
    done = audited.run("verify")
    assert (done.returncode, done.stderr) == (0, "")
    size = audited.reader(WAGERS).size
    assert (
        f"wagers/0: {size:,} entries, offsets {audited.first} to {audited.f1[-1].offset}, root"
        in (done.stdout)
    )
    assert audited.run("verify", "wagers/0").stdout.count("entries") == 1


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bit_in_a_bundle_is_found_by_its_entry(copied: Audited, seed: int) -> None:
    chance = random.Random(seed)
    file = chance.choice(sorted((copied.folder / "log/wagers/0/tile/entries").rglob("*")))
    while not file.is_file():
        file = chance.choice(sorted((copied.folder / "log/wagers/0/tile/entries").rglob("*")))
    raw = bytearray(file.read_bytes())
    raw[chance.randrange(2, len(raw))] ^= 1
    file.chmod(0o644)
    file.write_bytes(raw)
    done = copied.run("verify")
    faults = [line for line in done.stdout.splitlines() if line.startswith("fault: wagers/0/")]
    assert (done.returncode, bool(faults)) == (1, True), done.stdout
    assert "tile/entries" in faults[0]
    assert copied.run("rebuild").returncode == 1
    assert copied.run("export", "out").returncode == 1


def test_what_lies_beyond_the_signed_end_is_listed_and_no_fault(copied: Audited) -> None:
    (copied.folder / "log/wagers/0/tile/entries/009").write_bytes(b"x")
    done = copied.run("verify")
    assert done.returncode == 0, done.stdout
    assert "wagers/0: not signed, beyond the end: tile/entries/009" in done.stdout


def test_log_that_the_record_has_seen_and_is_gone_or_shorter_is_missed(copied: Audited) -> None:
    with engine_of(copied.settings["DATABASE_URL"], migrated=False) as engine, engine.begin() as c:
        c.execute(sa.update(tables.audit_heads).values(size=tables.audit_heads.c.size + 1))
    done = copied.run("verify")
    assert (done.returncode, done.stdout.count("the record has seen")) == (1, 2), done.stdout
    assert copied.run("verify", "--log-only").returncode == 0
    shutil.rmtree(copied.folder / "log/position-changes")
    done = copied.run("verify")
    assert "fault: position-changes/0/checkpoint: is missing" in done.stdout


def test_two_checkpoints_are_consistent_or_not(
    audited: Audited, copied: Audited, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    new.write_bytes(audited.reader(WAGERS).checkpoint.note)
    # A log that begins otherwise, signed by the same key, of fewer entries.
    fork_folder = tmp_path / "fork"
    with engine_of(loaded(f"sqlite:///{tmp_path / 'fork.sqlite'}")) as engine:
        fork = AuditedPlay(
            fork_folder, engine, MemoryBoard(TOMBSTONE_KEY), signer=audited.play.signer
        )
        fork.take(interleaved(7, tournaments=1, length=20))
        checkpoint = fork.logs[Place(WAGERS, 0)].checkpoint
    assert checkpoint is not None
    old = tmp_path / "old"
    old.write_bytes(checkpoint.note)
    same = audited.run("verify", "--consistent", str(new), str(new))
    assert (same.returncode, "consistent" in same.stdout) == (0, True), same.stdout
    forked = audited.run("verify", "--consistent", str(old), str(new))
    assert forked.returncode == 1
    assert "of two different logs; only NEW is of this one" in forked.stdout
    kept = audited.run("verify", "--checkpoint", str(old))
    assert (kept.returncode, "fault: wagers/0" in kept.stdout) == (1, True), kept.stdout
    assert audited.run("verify", "--checkpoint", str(new)).returncode == 0
    turned = audited.run("verify", "--consistent", str(new), str(old))
    assert (turned.returncode, "the other way round" in turned.stderr) == (2, True)
    old.write_bytes(checkpoint.note.replace(b"\n", b"\n1", 1))
    edited = audited.run("verify", "--consistent", str(old), str(new))
    assert (edited.returncode, str(old) in edited.stderr) == (1, True), edited.stderr


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("AUDIT_LOG_URL", "ftp://x/y", "AUDIT_LOG_URL"),
        ("AUDIT_PUBLIC_KEY", "nonsense", "AUDIT_PUBLIC_KEY"),
        ("AUDIT_PUBLIC_KEY", "", "AUDIT_PUBLIC_KEY"),
        ("AUDIT_LOG_ORIGIN", "", "AUDIT_LOG_ORIGIN"),
    ],
)
def test_wrong_setting_is_named(audited: Audited, setting: str, value: str, told: str) -> None:
    settings = {**audited.settings, setting: value}
    done = command(["audit", "verify"], audited.folder, settings)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_log_that_another_key_has_signed_is_refused(audited: Audited, tmp_path: Path) -> None:
    with engine_of(loaded(f"sqlite:///{tmp_path / 'other.sqlite'}")) as engine:
        other = AuditedPlay(tmp_path / "log", engine, MemoryBoard(TOMBSTONE_KEY))
    settings = {**audited.settings, "AUDIT_PUBLIC_KEY": str(other.signer.verifier)}
    done = command(["audit", "verify"], audited.folder, settings)
    assert (done.returncode, "is not signed by" in done.stdout) == (1, True), done.stdout


# --- rebuild -------------------------------------------------------------------------------------


def test_untouched_record_is_rebuilt_without_a_fault(audited: Audited) -> None:
    done = audited.run("rebuild", "--late", "0")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    size = audited.reader(WAGERS).size
    assert f"{size:,} inputs of 3 tournaments folded" in done.stdout
    assert f"record: {size:,} inputs, {audited.reader(POSITION_CHANGES).size:,} changes" in (
        done.stdout
    )
    alone = audited.run("rebuild", "--late", "0", "--log-only")
    assert (alone.returncode, "record:" in alone.stdout) == (0, False)


@pytest.mark.parametrize(
    "words", [["rebuild"], ["prove", "--source", "/tests", "--id", "e1", "--out", "proof"]]
)
def test_another_tombstone_key_is_said_to_be_one_and_no_fault_of_the_log(
    audited: Audited, words: list[str]
) -> None:
    settings = {**audited.settings, "TOMBSTONE_KEY": TOMBSTONE_KEY.decode() + "x"}
    done = command(["audit", *words], audited.folder, settings)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout
    assert "TOMBSTONE_KEY: is not the key that the log" in done.stderr
    # It takes more than one leaf with another id: that is a fault of the log, at its place.
    assert audited.run(*words).returncode != 2


def test_rows_beside_the_fold_are_compared_and_told(copied: Audited) -> None:
    alert = ev.FraudSuspected(tournament_id=F1, player_id="x", rule="other", evidence={"n": 1})
    suspicion = ev.Event(f"{F1}/9/other", ev.POSITION_SOURCE, START_MS, alert)
    events = {
        CONNECTIONS: [attempted(n, None if n % 3 else "ann") for n in range(20)],
        FRAUD_ALERTS: [suspicion, reviewed(suspicion, "dismissed", 1, reason="a birthday")],
    }
    table = tables.connection_attempts
    with engine_of(copied.settings["DATABASE_URL"], migrated=False) as engine:
        play = AuditedPlay(
            copied.folder / "log", engine, copied.play.board, signer=copied.play.signer
        )
        for topic, some in events.items():
            play.keep(topic, [LogEntry(Offset(n), START_MS, one) for n, one in enumerate(some)])
        done = copied.run("rebuild")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert "beside: 20 connection attempts, 1 suspicions, 1 decisions" in done.stdout
        with engine.begin() as c:
            c.execute(sa.update(table).where(table.c.log_offset == 7).values(address="x"))
        done = copied.run("rebuild")
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        1,
        "fault: connection_attempts of connections/0 at offset 7: address or user_agent is not "
        "what the log is committed to",
    )


def test_row_that_was_changed_by_hand_is_said_with_its_place(copied: Audited) -> None:
    at = copied.f1[20].offset
    row = tables.inputs.c
    with engine_of(copied.settings["DATABASE_URL"], migrated=False) as engine, engine.begin() as c:
        text = c.execute(sa.select(row.data).where(row.log_offset == at)).scalar_one()
        wrong = text.replace('"score":', '"score":1')
        assert wrong != text
        c.execute(sa.update(tables.inputs).where(row.log_offset == at).values(data=wrong))
    done = copied.run("rebuild")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == (
        f"fault: inputs of {F1} at offset {at}: event_id or data is not what the log is committed to"  # noqa: E501
    )
    assert done.stdout.count("fault:") == 1


# --- export --------------------------------------------------------------------------------------

QUERY = """
SELECT player, sum(stake_minor + coalesce(win_minor, 0)) AS turnover, sum(score) AS points,
       count(*) AS events
FROM 'parquet/wagers-*.parquet'
WHERE tournament = 'f1-2023' AND type = 'score.submitted'
GROUP BY player ORDER BY points DESC, min("offset") LIMIT 3
"""


def test_export_has_every_leaf_with_its_number_hash_and_bytes(
    audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = audited.run("export", str(tmp_path / "parquet"))
    assert done.returncode == 0, done.stderr
    assert sorted(one.name for one in (tmp_path / "parquet").iterdir()) == [
        "position-changes-0.parquet",
        "wagers-0.parquet",
    ]
    reader = audited.reader(WAGERS)
    file = pq.ParquetFile(tmp_path / "parquet/wagers-0.parquet")
    assert file.schema_arrow.metadata[b"checkpoint"] == reader.checkpoint.note
    table = file.read().to_pylist()
    assert [row["leaf"] for row in table] == list(reader.entries())
    assert [row["leaf_index"] for row in table] == list(range(reader.size))
    assert all(row["leaf_hash"] == leaf_hash(row["leaf"]) for row in table)
    # The query of docs/audit-commands.md; and the hashes by DuckDB's own SHA-256.
    monkeypatch.chdir(tmp_path)
    page = (VERIFIER.parents[1] / "audit-commands.md").read_text(encoding="utf-8")
    assert QUERY.strip() in page
    with duckdb.connect() as database:
        top = database.sql(QUERY).fetchall()
        assert [row[2] for row in top] == sorted((row[2] for row in top), reverse=True)
        points: dict[str, int] = {}
        for entry in audited.f1[1:]:
            driver, score = str(entry.event.player_id), entry.event.data.score  # type: ignore[union-attr]
            points[driver] = points.get(driver, 0) + score
        assert [row[2] for row in top] == sorted(points.values(), reverse=True)[:3]
        assert HASHED.strip() in page
        assert database.sql(HASHED).fetchall() == [(0,)]


HASHED = r"""
SELECT count(*) FROM 'parquet/*.parquet'
WHERE unhex(sha256('\x00'::BLOB || leaf)) != leaf_hash
"""
