"""Settings: what is wrong is named, and what is secret is never shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydantic import BaseModel

from leaderboard import settings
from leaderboard.errors import SettingsError
from leaderboard.settings import (
    AuditLogSettings,
    AuditWriterSettings,
    ConsumerSettings,
    GatewaySettings,
    KafkaSettings,
    PlayersGatewaySettings,
    RedisSettings,
    TokenSettings,
    TombstoneSettings,
    load,
)
from leaderboard.wiring import signer_of

SECRET = "hunter2-and-much-longer-than-thirty-two"
KAFKA = {"KAFKA_BOOTSTRAP_SERVERS": "a.example:9092,b.example:9093"}
SASL = {
    **KAFKA,
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "KAFKA_SASL_USERNAME": "user",
    "KAFKA_SASL_PASSWORD": SECRET,
}
TOKENS = {
    "JWT_ISSUER": "https://issuer.example",
    "JWT_AUDIENCE": "leaderboard",
    "JWKS_URL": "https://issuer.example/jwks.json",
}
GATEWAY = {"GATEWAY_KIND": "nchan", "GATEWAY_PUBLISH_URL": "http://gateway.example:8081/"}
SERVICE = {
    "GATEWAY_KIND": "web-pubsub",
    "GATEWAY_PUBLISH_URL": "https://cups.webpubsub.azure.com",
    "GATEWAY_ACCESS_KEY": SECRET,
}
PLAYERS = {"GATEWAY_CLIENT_URL": "wss://cups.webpubsub.azure.com/client/hubs/leaderboard"}
WORKLOAD = {
    "AZURE_CLIENT_ID": "6a1d",
    "AZURE_TENANT_ID": "9f0c",
    "AZURE_FEDERATED_TOKEN_FILE": "/var/run/token",
}
KEYLESS = {**{n: t for n, t in SERVICE.items() if n != "GATEWAY_ACCESS_KEY"}, **WORKLOAD}
REDIS = {"REDIS_URL": "redis://redis.example:6379/0"}
SOUND: list[tuple[type[BaseModel], dict[str, str]]] = [
    (KafkaSettings, KAFKA),
    (KafkaSettings, SASL),
    (ConsumerSettings, {}),
    (RedisSettings, REDIS),
    (TombstoneSettings, {"TOMBSTONE_KEY": SECRET}),
    (GatewaySettings, GATEWAY),
    (GatewaySettings, SERVICE),
    (GatewaySettings, KEYLESS),
    (PlayersGatewaySettings, {**GATEWAY, "GATEWAY_CLIENT_URL": "wss://play.example/subscribe"}),
    (PlayersGatewaySettings, {**SERVICE, **PLAYERS}),
    (TokenSettings, TOKENS),
]


def told(model: type[BaseModel], environ: dict[str, str]) -> str:
    """The message for settings that are wrong."""
    with pytest.raises(SettingsError) as caught:
        load(model, environ)
    return str(caught.value)


@pytest.mark.parametrize(("model", "environ"), SOUND)
def test_sound_settings_are_read(model: type[BaseModel], environ: dict[str, str]) -> None:
    load(model, {**environ, "OTHER": "x"})


@pytest.mark.parametrize(("model", "environ"), SOUND)
def test_each_missing_variable_is_named(model: type[BaseModel], environ: dict[str, str]) -> None:
    for name in environ:
        if name == "KAFKA_SECURITY_PROTOCOL":
            continue
        for rest in ({}, {name: ""}):
            without = {key: value for key, value in environ.items() if key != name} | rest
            message = told(model, without)
            assert name in message
            assert "missing" in message


def test_all_that_is_missing_is_named_at_once() -> None:
    message = told(TokenSettings, {})
    assert all(name in message for name in TOKENS)


@pytest.mark.parametrize(
    ("model", "environ", "name", "wrong"),
    [
        *(
            (KafkaSettings, KAFKA, "KAFKA_BOOTSTRAP_SERVERS", wrong)
            for wrong in ("a", "a:", ":9092", "a:x", "a:1,", "a:1, b:2", "http://a:1 x")
        ),
        (KafkaSettings, SASL, "KAFKA_SECURITY_PROTOCOL", "TLS"),
        (KafkaSettings, SASL, "KAFKA_SASL_MECHANISM", "GSSAPI"),
        *((ConsumerSettings, {}, "PORT", wrong) for wrong in ("x", "-1", "65536", "1.5")),
        *((ConsumerSettings, {}, "BATCH_SIZE", wrong) for wrong in ("0", "10001", "many")),
        *((ConsumerSettings, {}, "KAFKA_SESSION_TIMEOUT_MS", w) for w in ("5", "9999999")),
        (ConsumerSettings, {}, "KAFKA_GROUP_PROTOCOL", "new"),
        (TombstoneSettings, {}, "TOMBSTONE_KEY", "short"),
        (GatewaySettings, GATEWAY, "GATEWAY_KIND", "socketio"),
        (GatewaySettings, GATEWAY, "GATEWAY_KIND", "web-pubsub"),  # and no key
        (GatewaySettings, SERVICE, "GATEWAY_ACCESS_KEY", "short"),
        (GatewaySettings, SERVICE, "GATEWAY_ACCESS_KEY_SECONDARY", "short"),
        *((GatewaySettings, SERVICE, "GATEWAY_HUB", wrong) for wrong in ("1a", "a/b", "a b")),
        *(
            (GatewaySettings, SERVICE, "GATEWAY_PUBLISH_URL", wrong)
            for wrong in ("http://cups.webpubsub.azure.com", "https://a/api", "https://a?x=y")
        ),
        (GatewaySettings, KEYLESS, "AZURE_TENANT_ID", "a/b"),
        (GatewaySettings, KEYLESS, "AZURE_AUTHORITY_HOST", "login"),
        *(
            (GatewaySettings, GATEWAY, "GATEWAY_PUBLISH_URL", wrong)
            for wrong in ("gateway", "ws://a", "http://", "http://a:x", "http://[::1", "http://a:0")
        ),
        (PlayersGatewaySettings, GATEWAY, "GATEWAY_CLIENT_URL", "https://a"),
        *(
            (PlayersGatewaySettings, SERVICE, "GATEWAY_CLIENT_URL", f"{scheme}://a/client{hub}")
            for scheme, hub in (("wss", ""), ("wss", "/hubs/other"), ("ws", "/hubs/leaderboard"))
        ),
        (TokenSettings, TOKENS, "JWKS_URL", "file:///etc/passwd"),
    ],
)
def test_each_wrong_variable_is_named(
    model: type[BaseModel], environ: dict[str, str], name: str, wrong: str
) -> None:
    assert name in told(model, {**environ, name: wrong})


def test_events_are_signed_with_a_key_also_where_an_identity_publishes() -> None:
    message = told(PlayersGatewaySettings, {**KEYLESS, **PLAYERS})
    assert message.startswith("GATEWAY_ACCESS_KEY: is missing")


def test_keys_of_the_service_are_never_shown() -> None:
    other = SECRET[::-1]
    sound = load(GatewaySettings, {**SERVICE, "GATEWAY_ACCESS_KEY_SECONDARY": other})
    assert sound.keys() == [SECRET, other]
    assert SECRET not in repr(sound)
    assert other not in repr(sound)
    assert SECRET not in told(GatewaySettings, {**SERVICE, "GATEWAY_HUB": "1"})


@pytest.mark.parametrize(
    "url",
    [
        *("redis://a", "redis://a:6379", "rediss://user:p%40ss@a:6380/2"),
        *("redis://:pw@a:1,b:2,c:3", "redis://[::1]:6379", "redis://a:1,[::1]:2/0"),
    ],
)
def test_one_server_and_the_seeds_of_a_cluster_are_both_redis_urls(url: str) -> None:
    assert load(RedisSettings, {"REDIS_URL": url}).url == url


@pytest.mark.parametrize(
    "url",
    [
        *("a:6379", "http://a", "redis://", "redis://a:x", "redis://a:0", "redis://a:99999"),
        *("redis://a:1,", "redis://a:1,,b:2", "redis://:1", "redis://a b:1", "redis://[::1"),
        "redis://:pa/ss@a:1",
    ],
)
def test_wrong_redis_url_is_named(url: str) -> None:
    assert "REDIS_URL" in told(RedisSettings, {"REDIS_URL": url})


def test_secret_is_read_from_its_file(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text(f"{SECRET}\n")
    loaded = load(TombstoneSettings, {"TOMBSTONE_KEY_FILE": str(secret)})
    assert loaded.bytes() == SECRET.encode()


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_file_that_says_nothing_is_named(tmp_path: Path, content: bytes | None) -> None:
    secret = tmp_path / "key"
    if content is not None:
        secret.write_bytes(content)
    assert "TOMBSTONE_KEY" in told(TombstoneSettings, {"TOMBSTONE_KEY_FILE": str(secret)})


def test_empty_name_of_a_file_is_none() -> None:
    environ = {"TOMBSTONE_KEY": SECRET, "TOMBSTONE_KEY_FILE": ""}
    assert load(TombstoneSettings, environ).bytes() == SECRET.encode()


def test_sasl_is_whole_and_goes_to_the_client_under_its_own_names(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    config = load(KafkaSettings, {**SASL, "KAFKA_SSL_CA_LOCATION": str(ca)}).client_config()
    assert config == {
        "bootstrap.servers": "a.example:9092,b.example:9093",
        "logger": logging.getLogger("librdkafka"),
        "reconnect.backoff.max.ms": 1_000,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "user",
        "sasl.password": SECRET,
        "ssl.ca.location": str(ca),
    }


@pytest.mark.parametrize("name", ["CA", "CERTIFICATE", "KEY"])
@pytest.mark.parametrize("content", [None, "fill-in"])
def test_file_of_tls_that_is_not_there_or_none_is_named(
    tmp_path: Path, name: str, content: str | None
) -> None:
    """As where a Secret that is mounted is missing, or was never filled in."""
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    message = told(KafkaSettings, {**SASL, f"KAFKA_SSL_{name}_LOCATION": str(file)})
    assert f"KAFKA_SSL_{name}_LOCATION: {file} is no file in PEM" in message


def test_every_setting_of_kafka_is_one_that_the_client_knows() -> None:
    from confluent_kafka import Producer

    names = {"KAFKA_SSL_KEY_PASSWORD": "x", "KAFKA_SSL_CA_LOCATION": "probe"}
    Producer(load(KafkaSettings, {**SASL, **names}).client_config())


@pytest.mark.parametrize(
    ("model", "environ"),
    [
        (KafkaSettings, {**SASL, "KAFKA_BOOTSTRAP_SERVERS": "wrong"}),
        (KafkaSettings, {**SASL, "KAFKA_SASL_USERNAME": ""}),
        (KafkaSettings, {**SASL, "KAFKA_SASL_MECHANISM": "x"}),
        (TombstoneSettings, {"TOMBSTONE_KEY": SECRET[:20]}),
        (RedisSettings, {"REDIS_URL": f"redis://:{SECRET}"}),
        (RedisSettings, {"REDIS_URL": f"redis://:{SECRET}@a:x"}),
        (RedisSettings, {"REDIS_URL": f"redis://u:{SECRET}@a:1,b:0"}),
        (RedisSettings, {"REDIS_URL": f"http://u:{SECRET}@a:1"}),
        (GatewaySettings, {**GATEWAY, "GATEWAY_PUBLISH_URL": f"http://u:{SECRET}@a:x"}),
    ],
)
def test_message_never_shows_a_secret(model: type[BaseModel], environ: dict[str, str]) -> None:
    assert SECRET[:7] not in told(model, environ)


@pytest.mark.parametrize(
    ("model", "environ"),
    [
        (KafkaSettings, {**SASL, "KAFKA_SSL_KEY_PASSWORD": SECRET}),
        (TombstoneSettings, {"TOMBSTONE_KEY": SECRET}),
        (RedisSettings, {"REDIS_URL": f"redis://:{SECRET}@a:1"}),
        (GatewaySettings, {**GATEWAY, "GATEWAY_PUBLISH_URL": f"http://u:{SECRET}@a:1"}),
    ],
)
def test_repr_never_shows_a_secret(model: type[BaseModel], environ: dict[str, str]) -> None:
    loaded = load(model, environ)
    assert SECRET not in repr(loaded)
    assert SECRET not in str(loaded)


def test_every_settings_class_names_its_variables() -> None:
    for one in vars(settings).values():
        if not (isinstance(one, type) and issubclass(one, BaseModel)):
            continue
        for field in one.model_fields.values():
            assert field.alias is not None
            assert field.alias.isupper()


LOG = {"AUDIT_LOG_URL": "file:///log", "AUDIT_LOG_ORIGIN": "example.com/audit"}


@pytest.mark.parametrize("url", ["file:///log", "s3://a-bucket", "s3://a-bucket/some/prefix"])
def test_audit_log_lies_in_a_folder_or_a_bucket(url: str) -> None:
    assert load(AuditLogSettings, LOG | {"AUDIT_LOG_URL": url}).url == url


@pytest.mark.parametrize(
    "url", ["/log", "file://log", "file:///", "s3://", "s3://UPPER", "https://a-bucket", "s3:/a"]
)
def test_any_other_place_of_the_audit_log_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match="AUDIT_LOG_URL: is no file:///folder"):
        load(AuditLogSettings, LOG | {"AUDIT_LOG_URL": url})


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "/a", "a//b", "a/", "x" * 161])
def test_audit_log_has_a_name_that_can_be_signed_with(origin: str) -> None:
    with pytest.raises(SettingsError, match="AUDIT_LOG_ORIGIN"):
        load(AuditLogSettings, LOG | {"AUDIT_LOG_ORIGIN": origin})


def test_key_that_is_none_is_refused_without_being_shown() -> None:
    wrong = "PRIVATE+KEY+example.com+0a1b2c3d"
    with pytest.raises(SettingsError, match="AUDIT_SIGNING_KEY: is no key") as told:
        load(AuditWriterSettings, LOG | {"AUDIT_SIGNING_KEY": wrong})
    assert "0a1b2c3d" not in str(told.value)
    mangled = "PRIVATE+KEY+example.com+0a1b2c3d+AQ=="
    looked_right = load(AuditWriterSettings, LOG | {"AUDIT_SIGNING_KEY": mangled})
    with pytest.raises(SettingsError, match="AUDIT_SIGNING_KEY") as told:
        signer_of(looked_right)
    assert "AQ==" not in str(told.value)
