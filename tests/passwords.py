"""Passwords (SCRAM-SHA-512) of a Kafka's users."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not in its stubs
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)


def give_password(admin: AdminClient, users: Iterable[str], password: str) -> None:
    """The same one for all of them, in place of what they had."""
    how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    wanted: list[UserScramCredentialAlteration] = [
        UserScramCredentialUpsertion(user, how, password.encode()) for user in users
    ]
    for future in admin.alter_user_scram_credentials(wanted).values():
        future.result(20)
