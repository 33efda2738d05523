"""Settings from the environment, checked at start, each error naming its variable.

A class of settings is a pydantic model whose aliases are the variables' names. `NAME_FILE`
names a file that holds the value of `NAME` (a mounted secret).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from leaderboard.errors import SettingsError
from leaderboard.setting_values import (
    database_url,
    has_pem,
    netloc_of,
    redis_seeds,
    url_with,
    web_origins,
)

S = TypeVar("S", bound=BaseModel)


def load(model: type[S], environ: Mapping[str, str]) -> S:
    """Read `model` from `environ`. Raises SettingsError naming every variable that is wrong."""
    values: dict[str, str] = {}
    for field in model.model_fields.values():
        name = field.alias
        if name is None:
            raise TypeError(f"{model.__name__} has a field without a variable")
        text = environ.get(name, "")
        if file_name := environ.get(f"{name}_FILE"):
            try:
                text = Path(file_name).read_text(encoding="utf-8").strip()
            except UnicodeDecodeError:
                raise SettingsError(f"{name}_FILE: {file_name} is not UTF-8") from None
            except OSError as error:
                raise SettingsError(f"{name}_FILE: can't be read: {error}") from None
        if text:  # set to nothing is not set
            values[name] = text
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SettingsError("; ".join(_told(one) for one in error.errors())) from None


def load_or_exit(model: type[S], environ: Mapping[str, str]) -> S:
    """The same for a process's start: what is wrong goes to standard error, the exit code is 2."""
    try:
        return load(model, environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _told(error: Mapping[str, Any]) -> str:
    loc, kind, message = error["loc"], error["type"], error["msg"]
    message = message.removeprefix("Value error, ")
    if not loc:  # of several variables together: the message names them
        return str(message)
    return f"{loc[0]}: is missing" if kind == "missing" else f"{loc[0]}: {message}"


_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
HttpUrl = Annotated[str, url_with("http", "https")]
SocketUrl = Annotated[str, url_with("ws", "wss")]
Port = Annotated[int, Field(ge=0, le=65_535)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=False)


class KafkaSettings(_Settings):
    """How to reach Kafka. Security settings go to librdkafka under their own names."""

    bootstrap_servers: Annotated[
        str, Field(alias="KAFKA_BOOTSTRAP_SERVERS", pattern=r"^[^\s,:]+:\d+(,[^\s,:]+:\d+)*$")
    ]
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", alias="KAFKA_SECURITY_PROTOCOL"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, alias="KAFKA_SASL_MECHANISM"
    )
    sasl_username: str | None = Field(None, alias="KAFKA_SASL_USERNAME")
    sasl_password: SecretStr | None = Field(None, alias="KAFKA_SASL_PASSWORD")
    ssl_ca_location: str | None = Field(None, alias="KAFKA_SSL_CA_LOCATION")
    ssl_certificate_location: str | None = Field(None, alias="KAFKA_SSL_CERTIFICATE_LOCATION")
    ssl_key_location: str | None = Field(None, alias="KAFKA_SSL_KEY_LOCATION")
    ssl_key_password: SecretStr | None = Field(None, alias="KAFKA_SSL_KEY_PASSWORD")

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL"):
            for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"KAFKA_{name.upper()}: is missing, and KAFKA_SECURITY_PROTOCOL is "
                        f"{self.security_protocol}"
                    )
        return self

    @model_validator(mode="after")
    def _files_are_there(self) -> KafkaSettings:
        """librdkafka tells neither which setting it was nor which file."""
        if self.security_protocol.endswith("SSL"):
            for name in ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location"):
                given = getattr(self, name)
                if given is not None and not has_pem(given):
                    told = f"KAFKA_{name.upper()}: {given} is no file in PEM that can be read"
                    raise ValueError(told)
        return self

    def client_config(self) -> dict[str, Any]:
        """The part of a client's configuration that says where and as whom, and to whom it tells
        its troubles: as lines of its own they would be no JSON. A client that only asks is never
        polled, so nobody fetches its lines: it has to be told to be silent (`log_level`)."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "logger": logging.getLogger("librdkafka"),
            # After an outage nobody stays away for the 10 s that are the default.
            "reconnect.backoff.max.ms": 1_000,
            "security.protocol": self.security_protocol,
        }
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name.startswith(("sasl_", "ssl_")) and value is not None:
                plain = value.get_secret_value() if isinstance(value, SecretStr) else value
                config[name.replace("_", ".")] = plain
        return config


class ConsumerSettings(_Settings):
    """How a function takes part in its consumer group."""

    group_id: str | None = Field(None, alias="KAFKA_GROUP_ID", max_length=255)
    """None: the function's own name."""
    group_protocol: Literal["classic", "consumer"] = Field("classic", alias="KAFKA_GROUP_PROTOCOL")
    session_timeout_ms: int = Field(6_000, alias="KAFKA_SESSION_TIMEOUT_MS", ge=1_000, le=300_000)
    """Classic groups only: how long a killed member keeps its partitions."""
    batch_size: int = Field(1_000, alias="BATCH_SIZE", ge=1, le=10_000)
    dead_letter_cap_ratio: float = Field(0.5, alias="DEAD_LETTER_CAP_RATIO", gt=0, le=1)
    """The share of the latest records that may be unreadable; 1 switches the cap off."""
    dead_letter_cap_minimum: int = Field(200, alias="DEAD_LETTER_CAP_MINIMUM", ge=50, le=10_000)
    """How many records are the latest ones; with fewer nothing is judged."""
    host: str = Field("0.0.0.0", alias="HOST")  # noqa: S104 - a pod's probes come from outside
    port: Port = Field(8080, alias="PORT")
    """Of /healthz, /readyz and /metrics."""


class TracingSettings(_Settings):
    """OpenTelemetry's own settings, as far as they are checked at start; what else it knows
    (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`, `OTEL_RESOURCE_ATTRIBUTES` …) it reads itself.

    Unlike there, no exporter is the default: tracing is off until it is asked for."""

    disabled: Literal["true", "false"] = Field("false", alias="OTEL_SDK_DISABLED")
    exporter: Literal["none", "otlp"] = Field("none", alias="OTEL_TRACES_EXPORTER")
    protocol: Literal["http/protobuf"] = Field("http/protobuf", alias="OTEL_EXPORTER_OTLP_PROTOCOL")
    base_endpoint: HttpUrl = Field("http://localhost:4318", alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    traces_endpoint: HttpUrl | None = Field(None, alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    sampler: Literal[
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ] = Field("parentbased_always_on", alias="OTEL_TRACES_SAMPLER")
    sampler_arg: float = Field(1.0, alias="OTEL_TRACES_SAMPLER_ARG", ge=0, le=1)
    """Of the ratios: the share of traces that is kept."""
    service_name: str | None = Field(None, alias="OTEL_SERVICE_NAME", max_length=255)
    """None: the function's own name."""
    most_links: int = Field(1_000, alias="OTEL_SPAN_LINK_COUNT_LIMIT", ge=1, le=100_000)
    """Sampled wagers of one batch; what is above is counted, and not linked."""

    def is_on(self) -> bool:
        return self.exporter != "none" and self.disabled != "true"

    def endpoint(self) -> str:
        """Where traces go."""
        return self.traces_endpoint or f"{self.base_endpoint}/v1/traces"


class ArchiveSettings(ConsumerSettings):
    """Larger batches than elsewhere: a transaction costs the same for one input or thousands."""

    batch_size: int = Field(5_000, alias="BATCH_SIZE", ge=1, le=10_000)


class RedisSettings(_Settings):
    """Where the boards are: one server, or the seed list of a cluster (more than one host)."""

    url: Annotated[str, AfterValidator(redis_seeds)] = Field(alias="REDIS_URL", repr=False)


class DatabaseSettings(_Settings):
    """A database: the system of record, or (for the relay) the game platform's own."""

    url: Annotated[str, AfterValidator(database_url)] = Field(alias="DATABASE_URL", repr=False)
    """As SQLAlchemy takes it, with the driver's name."""


class RetentionSettings(_Settings):
    """How long the record keeps what: a jurisdiction's policy, and other numbers of days."""

    jurisdiction: Literal["default", "us-nj", "us-pa", "us-wv"] = Field(
        "default", alias="JURISDICTION"
    )
    tournaments_days: int | None = Field(None, alias="RETENTION_TOURNAMENTS_DAYS", ge=1, le=36_525)
    """After a tournament's end. None, here and below: as the policy says."""
    connection_attempts_days: int | None = Field(
        None, alias="RETENTION_CONNECTION_ATTEMPTS_DAYS", ge=1, le=36_525
    )
    dead_letters_days: int | None = Field(
        None, alias="RETENTION_DEAD_LETTERS_DAYS", ge=1, le=36_525
    )


class RelaySettings(_Settings):
    """How a relay sends what the outbox holds."""

    name: str | None = Field(None, alias="RELAY_NAME", max_length=128)
    """None: the host's. No two relays of one outbox have the same."""
    lease_seconds: int = Field(10, alias="RELAY_LEASE_SECONDS", ge=1, le=300)
    """How long others leave the lanes of a relay alone that does not say a word."""
    keep_seconds: int = Field(3600, alias="RELAY_KEEP_SECONDS", ge=0, le=31 * 24 * 3600)
    """How long what was sent stays, so that it is known when it is put again."""
    numbers: Literal["on", "off"] = Field("on", alias="RELAY_NUMBERS")
    """Off: events carry no `sequence`, and boards know repetitions by id."""
    batch_size: int = Field(1_000, alias="BATCH_SIZE", ge=1, le=10_000)
    host: str = Field("0.0.0.0", alias="HOST")  # noqa: S104 - a pod's probes come from outside
    port: Port = Field(8080, alias="PORT")


class TombstoneSettings(_Settings):
    """The secret behind tombstones and erasure ids; the same for every function, for ever."""

    key: SecretStr = Field(alias="TOMBSTONE_KEY", min_length=32)

    def bytes(self) -> bytes:
        return self.key.get_secret_value().encode()


class ErasureSettings(_Settings):
    """How long forgetting a player may take; the law's month is the most."""

    deadline_seconds: int = Field(3600, alias="ERASURE_DEADLINE_SECONDS", ge=60, le=30 * 24 * 3600)


def _log_place(text: str) -> str:
    scheme, place = netloc_of(text)
    path = urlsplit(text).path if scheme else ""
    if scheme == "file" and not place and len(path) > 1:
        return text.rstrip("/")
    if scheme == "s3" and re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", place):
        return text.rstrip("/")
    raise ValueError("is no file:///folder and no s3://bucket/prefix")


class AuditLogSettings(_Settings):
    """Where the audit log is, and as what its shards sign: `<origin>/<topic>/<partition>`."""

    url: Annotated[str, AfterValidator(_log_place)] = Field(alias="AUDIT_LOG_URL")
    origin: str = Field(
        alias="AUDIT_LOG_ORIGIN", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*$",
        max_length=160,
    )  # fmt: skip
    region: str | None = Field(None, alias="AWS_REGION", min_length=1)
    """This and what follows: of an object store, read by its client itself. Without keys it is the
    workload's own identity that writes."""
    endpoint: HttpUrl | None = Field(None, alias="AWS_ENDPOINT_URL")
    access_key_id: str | None = Field(None, alias="AWS_ACCESS_KEY_ID", min_length=1)
    secret_access_key: SecretStr | None = Field(None, alias="AWS_SECRET_ACCESS_KEY", min_length=1)


class AuditWriterSettings(AuditLogSettings):
    """The same for who writes it."""

    signing_key: SecretStr = Field(alias="AUDIT_SIGNING_KEY")
    """Ed25519, as C2SP's signed notes have it: PRIVATE+KEY+<name>+<id>+<key>."""

    @field_validator("signing_key")
    @classmethod
    def _looks_like_a_key(cls, key: SecretStr) -> SecretStr:
        form = r"PRIVATE\+KEY\+[^\s+]+\+[0-9a-f]{8}\+[A-Za-z0-9+/]+={0,2}"
        if re.fullmatch(form, key.get_secret_value()) is None:
            raise ValueError("is no key of the form PRIVATE+KEY+<name>+<8 hex digits>+<base64>")
        return key


class AuditReaderSettings(AuditLogSettings):
    """The same for who checks it."""

    public_key: str = Field(alias="AUDIT_PUBLIC_KEY")
    """<name>+<id>+<key>; the shards' logs are signed with it under their own names."""


class EntraSettings(_Settings):
    """A workload's identity, under the names that Azure's webhook gives a pod."""

    client_id: str = Field(alias="AZURE_CLIENT_ID", min_length=1)
    tenant_id: str = Field(alias="AZURE_TENANT_ID", pattern=r"^[A-Za-z0-9.-]+$")
    token_file: str = Field(alias="AZURE_FEDERATED_TOKEN_FILE", min_length=1)
    authority: HttpUrl = Field("https://login.microsoftonline.com", alias="AZURE_AUTHORITY_HOST")


class GatewaySettings(_Settings):
    """The WebSocket gateway: its kind, and the side on which functions publish."""

    kind: Literal["nchan", "web-pubsub", "development"] = Field(alias="GATEWAY_KIND")
    publish_url: HttpUrl = Field(alias="GATEWAY_PUBLISH_URL", repr=False)
    hub: str = Field("leaderboard", alias="GATEWAY_HUB", pattern=r"^[A-Za-z][A-Za-z0-9_]{0,127}$")
    """The rest is for Web PubSub only. Either an access key, or a workload's identity."""
    access_key: SecretStr | None = Field(None, alias="GATEWAY_ACCESS_KEY", min_length=16)
    other_access_key: SecretStr | None = Field(
        None, alias="GATEWAY_ACCESS_KEY_SECONDARY", min_length=16
    )
    """Believed beside the first: while keys are changed the service's events bear either."""
    entra_client_id: str | None = Field(None, alias="AZURE_CLIENT_ID")
    entra_tenant_id: str | None = Field(None, alias="AZURE_TENANT_ID")
    entra_token_file: str | None = Field(None, alias="AZURE_FEDERATED_TOKEN_FILE")
    entra_authority: str | None = Field(None, alias="AZURE_AUTHORITY_HOST")

    @model_validator(mode="after")
    def _service_is_known(self) -> GatewaySettings:
        if self.kind != "web-pubsub":
            return self
        if self.access_key is None:
            self.entra()
        parts = urlsplit(self.publish_url)
        if parts.path or parts.query:
            raise ValueError("GATEWAY_PUBLISH_URL: has a path; wanted is the service's endpoint")
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise ValueError("GATEWAY_PUBLISH_URL: is not https://, and tokens would be readable")
        return self

    def entra(self) -> EntraSettings:
        """The identity that publishes where there is no key. Raises ValueError naming what is
        missing."""
        given = {
            "AZURE_CLIENT_ID": self.entra_client_id,
            "AZURE_TENANT_ID": self.entra_tenant_id,
            "AZURE_FEDERATED_TOKEN_FILE": self.entra_token_file,
            "AZURE_AUTHORITY_HOST": self.entra_authority,
        }
        try:
            return load(EntraSettings, {name: text for name, text in given.items() if text})
        except SettingsError as error:
            raise ValueError(
                "GATEWAY_ACCESS_KEY: is missing, and GATEWAY_KIND is web-pubsub; nor is there a "
                f"workload identity in its place ({error})"
            ) from None

    def keys(self) -> list[str]:
        """The access keys, the one that signs first."""
        given = (self.access_key, self.other_access_key)
        return [key.get_secret_value() for key in given if key is not None]

    @property
    def host(self) -> str:
        """Of the service, as it names itself to its event handler."""
        return urlsplit(self.publish_url).netloc


class PlayersGatewaySettings(GatewaySettings):
    """Both sides of the gateway: also the one that players reach."""

    client_url: SocketUrl = Field(alias="GATEWAY_CLIENT_URL")

    @model_validator(mode="after")
    def _players_reach_the_hub(self) -> PlayersGatewaySettings:
        if self.kind != "web-pubsub":
            return self
        if self.access_key is None:
            raise ValueError(
                "GATEWAY_ACCESS_KEY: is missing; the service's events are signed with it, also "
                "where a workload identity publishes"
            )
        parts = urlsplit(self.client_url)
        if parts.path != f"/client/hubs/{self.hub}" or parts.query:
            raise ValueError(
                f"GATEWAY_CLIENT_URL: has to end with /client/hubs/{self.hub}, the hub of "
                "GATEWAY_HUB"
            )
        if parts.scheme != "wss" and parts.hostname not in _LOOPBACK:
            raise ValueError("GATEWAY_CLIENT_URL: is not wss://, and tickets would be readable")
        return self


class TokenSettings(_Settings):
    """Whose tokens are believed."""

    issuer: str = Field(alias="JWT_ISSUER", min_length=1)
    audience: str = Field(alias="JWT_AUDIENCE", min_length=1)
    jwks_url: HttpUrl = Field(alias="JWKS_URL")


class LimitSettings(_Settings):
    """How often somebody may ask, of all replicas together, and how an address is known."""

    requests: int = Field(100, alias="REQUESTS_PER_MINUTE", ge=1, le=100_000)
    """Of each player on `query`, in every 60 s. Staff and services have no limit."""
    failed_tokens: int = Field(300, alias="FAILED_TOKENS_PER_MINUTE", ge=0, le=100_000)
    """Requests from one address whose token proved nothing; 0: no limit."""
    client_address: Literal["first", "last"] = Field("last", alias="CLIENT_ADDRESS")
    """Which element of X-Forwarded-For is the client: the first where our gateway overwrites the
    header and nobody gets around it, the last where the proxy before us appends to it."""


class EntranceSettings(_Settings):
    """Who gets in, and how many."""

    connections: int = Field(30, alias="CONNECTIONS_PER_MINUTE", ge=1, le=100_000)
    """Ways in that a player may ask for, in every 60 s."""
    sockets: int = Field(250_000, alias="SOCKETS_PER_TOURNAMENT", ge=1, le=10_000_000)
    ticket_address: Literal["same", "any"] = Field("same", alias="TICKET_ADDRESS")
    """From where a way in is good: the address that asked for it (of IPv6: its /64), or any."""


class EventSettings(_Settings):
    """Whether CloudEvents are taken from whoever reaches the function: what Knative Eventing sends
    has no token. Off unless the network lets nobody else through."""

    from_anyone: Literal["off", "on"] = Field("off", alias="EVENTS_FROM_ANYONE")

    def roles(self, otherwise: frozenset[str]) -> frozenset[str] | None:
        """Who may post an event; None: everyone."""
        return None if self.from_anyone == "on" else otherwise


class DetectionSettings(_Settings):
    """Whether `on-wager` looks for fraud beside its boards."""

    fraud_detection: Literal["off", "on"] = Field("on", alias="FRAUD_DETECTION")

    def is_on(self) -> bool:
        return self.fraud_detection == "on"


class OriginSettings(_Settings):
    """The web origins whose pages may call this function."""

    allowed: Annotated[str, AfterValidator(web_origins)] = Field("", alias="ALLOWED_ORIGINS")

    def origins(self) -> tuple[str, ...]:
        return tuple(filter(None, map(str.strip, self.allowed.split(","))))
