"""One suite over both stores of the audit log: a directory, and a server that speaks S3."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import boto3
import pytest

from audits import ORIGIN, SIGNER, VERIFIER, entries_of, reader_of, written
from leaderboard.adapters import directory_log
from leaderboard.adapters.directory_log import DirectoryLogStore, DirectoryLogStores
from leaderboard.adapters.object_log import ObjectLogStores
from leaderboard.audit.log import AuditLog
from leaderboard.audit.store import LogStore, LogStores, Shard
from leaderboard.audit.verify import verify_log
from leaderboard.errors import FencedError, LogConflictError, TransientError
from object_stores import object_store

BUCKET = "audit"
WAGERS = Shard("wagers", 3)
NUMBERS = count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = object_store(0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["directory", "s3"])
def stores(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LogStores:
    if request.param == "directory":
        return DirectoryLogStores(tmp_path / "audit")
    endpoint = request.getfixturevalue("s3_endpoint")
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    if BUCKET not in [one["Name"] for one in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    return ObjectLogStores.at(f"s3://{BUCKET}/prefix-{next(NUMBERS)}")


@pytest.fixture
def store(stores: LogStores) -> LogStore:
    return stores.shard(WAGERS)


def test_file_is_as_it_was_written(store: LogStore) -> None:
    files = {"tile/0/x001/234.p/5": bytes(range(256)), "tile/entries/000": b"", "cosigned/1": b"x"}
    assert [store.read(path) for path in files] == [None] * 3
    store.write(files)
    assert {path: store.read(path) for path in files} == files
    assert store.read("tile/0") is None
    assert store.read("tile/entries/000/1") is None


def test_file_is_written_once(store: LogStore) -> None:
    store.write({"tile/0/000": b"one", "tile/0/001": b"two"})
    store.write({"tile/0/000": b"one", "tile/0/002": b"three"})
    with pytest.raises(LogConflictError, match=r"wagers/3/tile/0/000"):
        store.write({"tile/0/000": b"other"})
    assert [store.read(f"tile/0/00{n}") for n in range(3)] == [b"one", b"two", b"three"]


def test_file_that_is_there_and_can_not_be_seen_is_no_conflict(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two write it at the same time, or one removes what is superseded: to be tried again."""
    store.write({"tile/0/000.p/7": b"x"})
    monkeypatch.setattr(type(store), "read", lambda self, path: None)
    with pytest.raises(TransientError, match="tile/0/000"):
        store.write({"tile/0/000.p/7": b"x"})
    monkeypatch.undo()
    store.write({"tile/0/000.p/7": b"x"})


def test_of_many_who_write_a_file_at_once_one_wins(stores: LogStores) -> None:
    barrier = threading.Barrier(8)

    def write(content: bytes) -> bool:
        barrier.wait()
        try:
            stores.shard(WAGERS).write({"tile/0/000": content})
        except LogConflictError:
            return False
        return True

    for _ in range(5):
        shard = stores.shard(WAGERS)
        shard.remove(["tile/0/000"])
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(write, (b"%d" % number for number in range(8))))
        assert sum(won) == 1
        assert shard.read("tile/0/000") == b"%d" % won.index(True)


def test_checkpoint_is_replaced_by_compare(store: LogStore) -> None:
    with pytest.raises(FencedError):
        store.replace_checkpoint(b"never there", b"one")
    assert store.read("checkpoint") is None
    store.replace_checkpoint(None, b"one")
    with pytest.raises(FencedError):
        store.replace_checkpoint(None, b"other")
    store.replace_checkpoint(b"one", b"two")
    with pytest.raises(FencedError):
        store.replace_checkpoint(b"one", b"three")
    assert store.read("checkpoint") == b"two"
    # Said twice, as after an answer that was lost.
    store.replace_checkpoint(b"one", b"two")
    assert store.read("checkpoint") == b"two"


def test_of_many_who_replace_a_checkpoint_at_once_one_wins(stores: LogStores) -> None:
    stores.shard(WAGERS).replace_checkpoint(None, b"start")
    barrier = threading.Barrier(8)

    def replace(after: bytes) -> bool:
        shard = stores.shard(WAGERS)
        before = shard.read("checkpoint")
        barrier.wait()
        try:
            shard.replace_checkpoint(before, after)
        except FencedError:
            return False
        return True

    for turn in range(5):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(replace, (b"%d of %d" % (n, turn) for n in range(8))))
        assert sum(won) == 1
        assert stores.shard(WAGERS).read("checkpoint") == b"%d of %d" % (won.index(True), turn)


def test_paths_are_those_that_begin_so(store: LogStore) -> None:
    files = ["tile/0/000.p/1", "tile/0/000.p/12", "tile/0/000", "tile/0/0001/7", "tile/entries/000"]
    assert list(store.paths()) == []
    store.write(dict.fromkeys(files, b"x"))
    store.replace_checkpoint(None, b"x")
    assert sorted(store.paths()) == sorted([*files, "checkpoint"])
    assert sorted(store.paths("tile/0/000.p/")) == ["tile/0/000.p/1", "tile/0/000.p/12"]
    assert sorted(store.paths("tile/0/000")) == sorted(files[:4])
    assert list(store.paths("tile/1/")) == []


def test_removed_files_are_gone_and_the_others_stay(store: LogStore) -> None:
    store.write({f"tile/0/000.p/{n}": b"x" for n in range(1, 6)})
    store.remove([])
    store.remove(["tile/0/000.p/1", "tile/0/000.p/2", "tile/0/000.p/99"])
    assert sorted(store.paths()) == [f"tile/0/000.p/{n}" for n in range(3, 6)]
    store.remove(list(store.paths()))
    store.write({"tile/0/000.p/1": b"again"})
    assert list(store.paths()) == ["tile/0/000.p/1"]


def test_shards_are_those_with_a_log(stores: LogStores) -> None:
    assert stores.shards() == []
    for shard in (Shard("wagers", 10), Shard("wagers", 2), Shard("gdpr-events", 0)):
        stores.shard(shard).replace_checkpoint(None, b"x")
    stores.shard(Shard("wagers", 4)).write({"tile/0/000.p/1": b"never signed"})
    assert [str(one) for one in stores.shards()] == ["gdpr-events/0", "wagers/2", "wagers/10"]


def test_shards_do_not_see_each_other(stores: LogStores) -> None:
    stores.shard(Shard("wagers", 1)).write({"tile/0/000": b"1"})
    stores.shard(Shard("wagers", 11)).write({"tile/0/000": b"11"})
    assert stores.shard(Shard("wagers", 1)).read("tile/0/000") == b"1"
    assert list(stores.shard(Shard("wagers", 1)).paths()) == ["tile/0/000"]


def test_log_is_written_read_and_verified(store: LogStore) -> None:
    entries = entries_of(1_000)
    written(store, entries, batch=130)
    assert list(reader_of(store).entries()) == entries
    report = verify_log(store, ORIGIN, VERIFIER)
    assert report.is_sound
    # Partial files went when they were full.
    tiles = {"tile/0/000", "tile/0/001", "tile/0/002"}
    assert tiles <= set(store.paths("tile/0/"))
    assert all(path.startswith("tile/0/003.p/") for path in set(store.paths("tile/0/")) - tiles)


def test_two_writers_share_a_log_without_loss(store: LogStore) -> None:
    """Both read the same entries; whoever loses opens anew."""
    entries, both = entries_of(1_500), threading.Barrier(2)

    def write(batch: int) -> int:
        log, fenced = AuditLog.open(store, ORIGIN, SIGNER), 0
        both.wait()  # one of the two first appends must lose
        while log.size < len(entries):
            try:
                log.append(entries[log.size : log.size + batch])
            except FencedError:
                fenced += 1
                log = AuditLog.open(store, ORIGIN, SIGNER)
            except TransientError:
                pass  # the other one has just removed a folder: once more
        return fenced

    with ThreadPoolExecutor(2) as pool:
        fenced = sum(pool.map(write, (11, 17)))
    assert fenced, "they never met"
    assert list(reader_of(store).entries()) == entries
    assert verify_log(store, ORIGIN, VERIFIER).is_sound


def test_directory_that_can_not_be_written_is_away_or_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="directory"):
        DirectoryLogStore(tmp_path / "file").write({"tile/0/000": b"x"})


def test_full_disk_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryLogStore(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    calls: list[Callable[[], object]] = [
        lambda: store.write({"tile/0/000": b"x"}),
        lambda: store.replace_checkpoint(None, b"x"),
    ]
    for call in calls:
        with pytest.raises(TransientError, match="No space left"):
            call()
    assert not list(tmp_path.rglob(".new-*"))
    monkeypatch.undo()
    store.write({"tile/0/000": b"y"})  # what broke off is not in the way
    assert store.read("tile/0/000") == b"y"


def test_folder_that_another_writer_removes_meanwhile_is_away_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, put_aside = DirectoryLogStore(tmp_path), directory_log._put_aside

    def too_late(place: Path, content: bytes) -> Path:
        place.parent.rmdir()
        return put_aside(place, content)

    monkeypatch.setattr(directory_log, "_put_aside", too_late)
    with pytest.raises(TransientError, match="No such file"):
        store.write({"tile/0/000.p/7": b"x"})
    monkeypatch.undo()
    store.write({"tile/0/000.p/7": b"x"})
    assert store.read("tile/0/000.p/7") == b"x"


def test_server_that_is_gone_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret indeed")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    stores = ObjectLogStores.at("s3://audit/prefix")
    store = stores.shard(WAGERS)
    calls: list[Callable[[], object]] = [
        lambda: store.read("checkpoint"),
        lambda: store.write({"tile/0/000": b"x"}),
        lambda: store.replace_checkpoint(None, b"x"),
        lambda: store.remove(["tile/0/000"]),
        lambda: list(store.paths()),
        stores.shards,
    ]
    for call in calls:
        with pytest.raises(TransientError, match="the audit log's object store") as error:
            call()
        assert "very secret" not in str(error.value)


def test_everything_is_on_the_disk_before_it_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files before their names, names before the checkpoint, the checkpoint before the answer."""
    import os

    steps: list[str] = []
    real_sync, real_link, real_replace = os.fsync, os.link, Path.replace

    def name_of(handle: int) -> str:
        return str(Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path))

    def sync(handle: int) -> None:
        steps.append(f"sync {name_of(handle)}")
        real_sync(handle)

    def link(new: Path, place: Path) -> None:
        steps.append(f"link {place.relative_to(tmp_path)}")
        real_link(new, place)

    def replace(new: Path, place: Path) -> Path:
        steps.append(f"replace {place.relative_to(tmp_path)}")
        return real_replace(new, place)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("os.link", link)
    monkeypatch.setattr(Path, "replace", replace)
    log = AuditLog.open(DirectoryLogStores(tmp_path).shard(WAGERS), ORIGIN, SIGNER)
    log.append(entries_of(300))

    signed = steps.index("replace wagers/3/checkpoint")
    for path in ("tile/0/000", "tile/0/001.p/44", "tile/entries/000", "tile/1/000.p/1"):
        folder, _, name = f"wagers/3/{path}".rpartition("/")
        linked = steps.index(f"link {folder}/{name}")
        assert any(one.startswith(f"sync {folder}/.new-{name}-") for one in steps[:linked]), (
            "a name before its content"
        )
        assert f"sync {folder}" in steps[linked:signed], "signed before its name is durable"
    for made in ("wagers/3/tile", "wagers/3", "wagers", "."):
        assert f"sync {made}" in steps[:signed], f"what is new in {made} could be lost"
    assert any(one.startswith("sync wagers/3/.new-checkpoint") for one in steps[:signed])
    assert "sync wagers/3" in steps[signed:]


def test_folders_of_an_append_that_broke_off_are_on_the_disk_before_the_next_is_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are there, so nobody makes them again; their names may still be lost."""
    synced: list[str] = []
    real = directory_log._sync_folder

    def broken(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    def sync(folder: Path) -> None:
        synced.append(str(folder.relative_to(tmp_path)))
        real(folder)

    stores = DirectoryLogStores(tmp_path)
    store = stores.shard(WAGERS)
    monkeypatch.setattr(directory_log, "_sync_folder", broken)
    with pytest.raises(TransientError):
        store.write({"tile/0/000": b"x"})
    with pytest.raises(TransientError):
        store.replace_checkpoint(None, b"signed")
    monkeypatch.setattr(directory_log, "_sync_folder", sync)
    store.replace_checkpoint(None, b"signed")
    assert {"wagers/3", "wagers", "."} <= {*synced}, "it is there, and its name may be lost"
    for again in (store, stores.shard(WAGERS)):  # the same process, and another one
        again.write({"tile/0/000": b"x"})
        assert {".", "wagers", "wagers/3", "wagers/3/tile", "wagers/3/tile/0"} <= {*synced}
        synced.clear()
        again.write({"tile/0/001": b"y"})
        assert synced == ["wagers/3/tile/0"], "what is safe costs nothing"
        for _ in range(2):
            synced.clear()
            again.write({"tile/0/002.p/9": b"z"})
            again.remove(["tile/0/002.p/9"])
            assert sorted(synced) == ["wagers/3/tile/0", "wagers/3/tile/0/002.p"]
        synced.clear()


def test_what_a_crash_has_left_is_never_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the link: the name that was to go is one more of the file that counts."""
    store = DirectoryLogStore(tmp_path)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    store.write({"tile/0/000": b"signed"})
    for _ in range(20):
        with pytest.raises(LogConflictError):
            store.write({"tile/0/000": b"others"})
    assert store.read("tile/0/000") == b"signed"


def test_who_was_stopped_while_it_replaced_a_checkpoint_holds_nobody_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_log, "LOCK_SECONDS", 0.1)
    store = DirectoryLogStore(tmp_path / "shard")
    store.replace_checkpoint(None, b"one")
    with (tmp_path / "shard" / directory_log.LOCK).open("a") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with pytest.raises(TransientError, match="held by another writer"):
            store.replace_checkpoint(b"one", b"two")
        assert store.read("checkpoint") == b"one"
    store.replace_checkpoint(b"one", b"two")
    assert store.read("checkpoint") == b"two"
