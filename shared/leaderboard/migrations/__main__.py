"""`python -m leaderboard.migrations`: the record's schema taken forward, for a Job without the
command line's libraries. The same as `leaderboard record upgrade`."""

from __future__ import annotations

import os
import sys

from leaderboard.adapters import sql_migrations
from leaderboard.errors import LeaderboardError, SettingsError
from leaderboard.settings import DatabaseSettings, load


def main() -> int:
    """Exit code 2: a setting, or the schema that it leads to, is wrong; 1: try again later."""
    try:
        reached = sql_migrations.upgrade(load(DatabaseSettings, os.environ).url)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except LeaderboardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"the record is at {reached}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
