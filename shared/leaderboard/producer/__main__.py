"""`python -m leaderboard.producer`: the relay, with settings from the environment."""

from __future__ import annotations

import os
import sys

from leaderboard.errors import LeaderboardError, SettingsError
from leaderboard.producer.service import run


def main() -> int:
    """Exit code 2: a setting is wrong; 1: another relay has this name."""
    try:
        run(os.environ)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except LeaderboardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
