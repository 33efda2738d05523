"""Play that looks like play: few players stake most, stakes have a long tail, rounds come in
bursts. Random, but the same for the same seed; sends nothing by itself."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from leaderboard.events import Event, PlayerJoined, WagerPlaced
from leaderboard.model import PlayerId, TournamentId

ZIPF_EXPONENT: Final = 1.1
"""Of how often a player plays, by their place among the keenest."""
MEDIAN_STAKE_MINOR: Final = 200
STAKE_SIGMA: Final = 0.9
"""Of the logarithm of one player's stakes around their own habit."""
HABIT_SIGMA: Final = 0.7
"""Of the logarithm of the habits."""
LARGEST_STAKE_MINOR: Final = 500_000
WIN_CHANCE: Final = 0.28
MEAN_WIN_FACTOR: Final = 3.4
"""With the chance above 95 % of what is staked comes back."""
BURST_CHANCE: Final = 0.02
MEAN_BURST_ROUNDS: Final = 12
GAMES: Final = ("crash-star", "neon-roulette", "river-slots", "lucky-keno")
_FIRST_NAMES: Final = (
    "Ada Ben Cleo Dario Elif Finn Gala Hugo Ines Jonas Kaya Luca Mira Noor Otis Pia Quinn Rosa "
    "Sami Tara Uma Vito Wren Xenia Yuri Zoe"
)
FIRST_NAMES: Final = tuple(_FIRST_NAMES.split())


@dataclass(frozen=True, slots=True)
class Round:
    """One settled round."""

    player_id: PlayerId
    game_id: str
    stake_minor: int
    win_minor: int


FOLLOWED_PLACE: Final = 6
"""So keen that rows move, and not so keen that nobody is above."""


class Crowd:
    """A fixed set of players and their endless rounds."""

    def __init__(self, size: int, random_source: random.Random) -> None:
        self._random = random_source
        self.players = [PlayerId(f"player-{number:03d}") for number in range(1, size + 1)]
        # Who is keen is not who comes first by name; but the first is whom a stack's page follows.
        keen = random_source.sample(self.players[1:], size - 1)
        keen.insert(min(FOLLOWED_PLACE, size - 1), self.players[0])
        self._players = keen
        weights = (1 / rank**ZIPF_EXPONENT for rank in range(1, size + 1))
        self._cumulative = list(itertools.accumulate(weights))
        self._habits = {
            player: MEDIAN_STAKE_MINOR * random_source.lognormvariate(0, HABIT_SIGMA)
            for player in self.players
        }

    def display_name(self, player_id: PlayerId) -> str:
        """A name for a player, the same at each call."""
        index = self.players.index(player_id)
        lap, place = divmod(index, len(FIRST_NAMES))
        return FIRST_NAMES[place] if lap == 0 else f"{FIRST_NAMES[place]} {lap + 1}"

    def rounds(self) -> Iterator[Round]:
        """Rounds without end; now and then one player plays several in a row."""
        while True:
            player = self._random.choices(self._players, cum_weights=self._cumulative)[0]
            count = 1
            if self._random.random() < BURST_CHANCE:
                count += int(self._random.expovariate(1 / MEAN_BURST_ROUNDS))
            game = self._random.choice(GAMES)
            for _ in range(count):
                yield self._round(player, game)

    def _round(self, player_id: PlayerId, game_id: str) -> Round:
        stake = self._habits[player_id] * self._random.lognormvariate(0, STAKE_SIGMA)
        stake_minor = max(10, min(LARGEST_STAKE_MINOR, round(stake / 10) * 10))
        win_minor = 0
        if self._random.random() < WIN_CHANCE:
            win_minor = int(stake_minor * self._random.expovariate(1 / MEAN_WIN_FACTOR))
        return Round(player_id, game_id, stake_minor, win_minor)


def wager(
    played: Round, tournament_id: TournamentId, source: str, time_ms: int, currency: str = "EUR"
) -> Event:
    """The event of a round, with an id of its own."""
    return Event(
        id=uuid.uuid4().hex,
        source=source,
        time_ms=time_ms,
        subject=played.player_id,
        data=WagerPlaced(
            tournament_id=tournament_id,
            player_id=played.player_id,
            game_id=played.game_id,
            stake_minor=played.stake_minor,
            win_minor=played.win_minor,
            currency=currency,
        ),
    )


def joining(
    player_id: PlayerId, name: str, tournament_id: TournamentId, source: str, time_ms: int
) -> Event:
    """The event of a player who enters a tournament."""
    return Event(
        id=uuid.uuid4().hex,
        source=source,
        time_ms=time_ms,
        subject=player_id,
        data=PlayerJoined(tournament_id=tournament_id, player_id=player_id, display_name=name),
    )
