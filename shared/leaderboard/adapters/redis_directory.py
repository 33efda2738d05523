"""The list of tournaments, in one Redis hash: tournament id → its terms as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from leaderboard.adapters.redis_client import RedisClient, transient
from leaderboard.fold import Terms
from leaderboard.model import TournamentId
from leaderboard.ports import Summary

KEY: Final = "tournaments"

# Functions write in any order after a crash or a rebalance, so the store decides who is newer.
_PUT: Final = """
local shown = redis.call('HGET', KEYS[1], ARGV[1])
if shown and cjson.decode(shown).revision > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class RedisDirectory:
    """`ports.Directory` on Redis; every call is one round trip."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def put(self, summary: Summary) -> None:
        """Show this, unless something with a higher revision is shown already."""
        terms = summary.terms
        with transient():
            self._client.eval(
                _PUT, 1, KEY, summary.tournament_id, str(terms.revision), terms.model_dump_json()
            )

    def find(self, tournament_id: TournamentId) -> Summary | None:
        """One tournament, None where it is unknown."""
        with transient():
            terms: Any = self._client.hget(KEY, tournament_id)
        if terms is None:
            return None
        return Summary(tournament_id, Terms.model_validate_json(terms))

    def all(self) -> Sequence[Summary]:
        """Every tournament, in order of start and id."""
        with transient():
            rows: Any = self._client.hgetall(KEY)
        found = [
            Summary(TournamentId(name.decode()), Terms.model_validate_json(terms))
            for name, terms in rows.items()
        ]
        return sorted(found, key=lambda one: (one.terms.starts_at_ms, one.tournament_id))

    def remove(self, tournament_id: TournamentId) -> None:
        """Show it no longer."""
        with transient():
            self._client.hdel(KEY, tournament_id)
