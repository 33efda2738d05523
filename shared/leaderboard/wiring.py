"""What composition roots share: drivers that a first request needs and a start does not, imported
then; and which gateway it is.

SQLAlchemy, joserfc and httpx were a third of a start; who is ready has time for them, and so has a
reader of Kafka whose group forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from leaderboard.callers import Limits, Quota, Tokens
from leaderboard.door import GuardedDoor
from leaderboard.errors import NoteError, SettingsError
from leaderboard.fraud_ports import Alerts
from leaderboard.hosts.first_use import FirstUse
from leaderboard.ports import Revisions
from leaderboard.record_ports import (
    Archive,
    Holdings,
    Pseudonyms,
    Record,
    Requests,
    Snapshots,
)
from leaderboard.settings import (
    AuditLogSettings,
    AuditWriterSettings,
    DatabaseSettings,
    GatewaySettings,
    PlayersGatewaySettings,
    TokenSettings,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from leaderboard.adapters.nchan_pods import NchanPods
    from leaderboard.adapters.redis_client import RedisClient
    from leaderboard.adapters.web_pubsub_gateway import WebPubSubGateway
    from leaderboard.audit.notes import Signer
    from leaderboard.audit.store import LogStores


def engine_of(settings: DatabaseSettings) -> FirstUse[Engine]:
    """The record's database."""

    def make() -> Engine:
        from leaderboard.adapters import sql_engine  # noqa: PLC0415 - see above

        return sql_engine.connect(settings.url)

    return FirstUse(make)


def answering(engine: Callable[[], Engine]) -> Callable[[], None]:
    """A check whether the record's database answers."""

    def check() -> None:
        from leaderboard.adapters import sql_engine  # noqa: PLC0415 - see above

        sql_engine.check(engine())

    return check


def let_in_by(settings: DatabaseSettings, engine: Callable[[], Engine]) -> Callable[[], None]:
    """A check whether the record's database takes our credentials."""

    def check() -> None:
        from leaderboard.adapters import sql_login  # noqa: PLC0415 - see above

        if settings.url.startswith(sql_login.DRIVER):
            sql_login.knock(settings.url)
        else:
            answering(engine)()

    return check


def check_schema(engine: Callable[[], Engine]) -> None:
    """Raises SettingsError unless the record's schema is that of this version; TransientError while
    its database is away."""
    from leaderboard.adapters import sql_migrations  # noqa: PLC0415 - see above

    sql_migrations.check(engine())


def archive_in(engine: Callable[[], Engine], tombstone_key: bytes) -> Archive:
    """The record, for who writes it."""
    from leaderboard.adapters.sql_archive import SqlArchive  # noqa: PLC0415 - see above

    return SqlArchive(engine(), tombstone_key)


def pseudonyms_in(engine: Callable[[], Engine], tombstone_key: bytes) -> Pseudonyms:
    """Keys of the audit log's pseudonyms."""
    from leaderboard.adapters.sql_pseudonyms import SqlPseudonyms  # noqa: PLC0415 - see above

    return SqlPseudonyms(engine(), tombstone_key)


def record_in(engine: Callable[[], Engine]) -> Record:
    """The record, for who goes on where its database is away: each call says so itself."""
    from leaderboard.adapters.sql_record import SqlRecord  # noqa: PLC0415 - see above

    return SqlRecord(engine())


def record_of(engine: Callable[[], Engine]) -> FirstUse[Record]:
    """The record, for who reads it."""

    def make() -> Record:
        from leaderboard.adapters import sql_reading  # noqa: PLC0415 - see above

        return sql_reading.opened(engine())

    return FirstUse(make)


def alerts_of(engine: Callable[[], Engine]) -> FirstUse[Alerts]:
    """The operators' queue of suspicions."""

    def make() -> Alerts:
        from leaderboard.adapters import sql_reading  # noqa: PLC0415 - see above

        return sql_reading.opened_alerts(engine())

    return FirstUse(make)


def snapshots_of(engine: Callable[[], Engine]) -> FirstUse[Snapshots]:
    """The record's snapshots of boards."""

    def make() -> Snapshots:
        from leaderboard.adapters.sql_snapshot import SqlSnapshots  # noqa: PLC0415 - see above

        return SqlSnapshots(engine())

    return FirstUse(make)


def requests_of(engine: Callable[[], Engine]) -> FirstUse[Requests]:
    """The record's requests to forget."""

    def make() -> Requests:
        from leaderboard.adapters import sql_reading  # noqa: PLC0415 - see above

        return sql_reading.requests_in(engine())

    return FirstUse(make)


def holdings_of(engine: Callable[[], Engine]) -> FirstUse[Holdings]:
    """What the record holds on players."""

    def make() -> Holdings:
        from leaderboard.adapters import sql_reading  # noqa: PLC0415 - see above

        return sql_reading.holdings_in(engine())

    return FirstUse(make)


def log_stores_of(settings: AuditLogSettings) -> LogStores:
    """Where the audit log's shards are."""
    parts = urlsplit(settings.url)
    if parts.scheme == "file":
        from leaderboard.adapters.directory_log import (  # noqa: PLC0415 - see above
            DirectoryLogStores,
        )

        return DirectoryLogStores(Path(unquote(parts.path)))
    from leaderboard.adapters.object_log import ObjectLogStores  # noqa: PLC0415 - see above

    return ObjectLogStores.at(settings.url)


def signer_of(settings: AuditWriterSettings) -> Signer:
    """Who signs it. Raises SettingsError, which does not show the key."""
    from leaderboard.audit.notes import Signer  # noqa: PLC0415 - see above

    try:
        return Signer.parse(settings.signing_key.get_secret_value())
    except NoteError as error:
        raise SettingsError(f"AUDIT_SIGNING_KEY: {error}") from None


def revisions_of(api_url: str, account_folder: Path) -> FirstUse[Revisions]:
    """The revisions of Knative Services, seen and changed as this pod's ServiceAccount."""

    def make() -> Revisions:
        from leaderboard.adapters.knative_revisions import (  # noqa: PLC0415 - see above
            KnativeRevisions,
        )

        return KnativeRevisions(api_url, account_folder)

    return FirstUse(make)


def tokens_of(settings: TokenSettings) -> FirstUse[Tokens]:
    """Who checks bearer tokens."""

    def make() -> Tokens:
        from leaderboard.adapters.jwks_tokens import JwksTokens  # noqa: PLC0415 - see above

        return JwksTokens(settings)

    return FirstUse(make)


def door_of(
    client: Callable[[], RedisClient], strangers: int, answer_seconds: float = 0.5
) -> GuardedDoor:
    """Who counts requests; `strangers` a minute and address may show tokens that prove nothing."""

    def make() -> Limits:
        from leaderboard.adapters.redis_limits import RedisLimits  # noqa: PLC0415 - see above

        return RedisLimits(client(), answer_seconds)

    quota = Quota("strangers", strangers) if strangers else None
    return GuardedDoor(FirstUse(make), quota)


def gateway_of(settings: GatewaySettings) -> FirstUse[NchanPods | WebPubSubGateway]:
    """The gateway that the settings name. The development gateway has Nchan's surface."""

    def make() -> NchanPods | WebPubSubGateway:
        if settings.kind == "web-pubsub":
            return _web_pubsub(settings)
        from leaderboard.adapters.nchan_pods import NchanPods  # noqa: PLC0415 - see above

        return NchanPods(settings.publish_url)

    return FirstUse(make)


def way_in_of(settings: PlayersGatewaySettings) -> Callable[[str], str]:
    """Makes the URL that a player's socket opens with a ticket."""
    if settings.kind != "web-pubsub":
        return lambda ticket: f"{settings.client_url}?ticket={ticket}"
    from leaderboard.adapters.web_pubsub_gateway import way_in  # noqa: PLC0415 - see above

    return way_in(settings.publish_url, settings.client_url, settings.hub, settings.keys()[0])


def _web_pubsub(settings: GatewaySettings) -> WebPubSubGateway:
    from leaderboard.adapters import web_pubsub_gateway as adapter  # noqa: PLC0415 - see above

    if settings.access_key is not None:
        bearer: adapter.Bearer = adapter.KeyBearer(settings.keys()[0])
    else:
        from leaderboard.adapters.entra_bearer import EntraBearer  # noqa: PLC0415 - see above

        bearer = EntraBearer(settings.entra())
    return adapter.WebPubSubGateway(settings.publish_url, settings.hub, bearer)
