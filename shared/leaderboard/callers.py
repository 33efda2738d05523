"""Who calls over HTTP, and how often they may: quotas, what counting says, what a client is told.

The header fields are those of draft-ietf-httpapi-ratelimit-headers-11: `RateLimit-Policy` says what
holds, `RateLimit` how much of it is left (`r`) and in how many seconds there is more (`t`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final, Literal, Protocol

IPV6_PREFIX: Final = 64
"""One customer's: inside it they have as many addresses as they like."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the token says. `expires_at_ms` is the token's end."""

    subject: str
    roles: frozenset[str]
    expires_at_ms: int


class Tokens(Protocol):
    """The judge of bearer tokens."""

    def known(self, token: str) -> Caller | None:
        """Who holds it, where it was checked before and still holds; None says nothing."""

    def verify(self, token: str) -> Caller:
        """Who holds the token. Raises UnauthenticatedError; TransientError when no key could
        be fetched yet."""


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `most` in every window of `seconds`, wherever it begins."""

    name: str
    most: int
    seconds: int = 60


@dataclass(frozen=True, slots=True)
class Limit:
    """A quota of each player on a route. Staff and services have none.

    `when_away`: what becomes of a request that nobody can count. `meanwhile`: it is handled while
    it is being counted, and what comes of it thrown away if it was too many: for reads only."""

    quota: Quota
    when_away: Literal["open", "closed"]
    meanwhile: bool = False


@dataclass(frozen=True, slots=True)
class Counted:
    """What a quota says of one request. `more_us`: microseconds until there is room for more."""

    is_within: bool
    left: int
    more_us: int


class Counting(Protocol):
    """A request that is being counted."""

    def answer(self) -> Counted:
        """Called once. Raises TransientError."""


class Limits(Protocol):
    """Counts, for all processes together. What is refused does not count."""

    def begin(self, quota: Quota, who: str) -> Counting:
        """Count a request of `who` against the quota; comes back before that is answered.
        Raises TransientError. Counted twice after a broken connection: never too few."""

    def check(self) -> None:
        """Raises TransientError when counting is not possible now."""


class Settling(Protocol):
    """A request at the door."""

    def settle(self) -> Mapping[str, str]:
        """The headers that tell how much is left. Raises TooManyError; TransientError where nobody
        can count and the route is closed then."""


class Door(Protocol):
    """What a host asks about requests. Refusals are remembered: who comes again before their time
    costs nobody else anything."""

    def meet(self, address: str) -> None:
        """Somebody whom nobody knows yet, before their token is looked at. Raises TooManyError
        where too many tokens from this address have proved nothing. Asks nobody."""

    def proved_nothing(self, address: str) -> None:
        """A token, or none, that proves nothing came from there. Raises TooManyError."""

    def begin(self, limit: Limit, subject: str) -> Settling:
        """Count a request of this player. Raises TooManyError as soon as it is known."""


def policy_of(quota: Quota) -> dict[str, str]:
    """The header that says what holds."""
    return {"RateLimit-Policy": f'"{quota.name}";q={quota.most};w={quota.seconds}'}


def headers_of(quota: Quota, counted: Counted) -> dict[str, str]:
    """Both headers."""
    told = f'"{quota.name}";r={counted.left};t={seconds_of(counted.more_us)}'
    return {**policy_of(quota), "RateLimit": told}


def seconds_of(microseconds: float) -> int:
    """Whole seconds, at least one: who waits so long comes late enough."""
    return max(1, -int(-microseconds // 1_000_000))


def network_of(address: str) -> str:
    """Whose address it is: of IPv4 itself, of IPv6 the /64; anything else as it is."""
    try:
        found = ip_address(address.strip("[]"))
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Network((int(found), IPV6_PREFIX), strict=False))
    return str(found)
