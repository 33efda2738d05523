"""`python -m leaderboard.cli`: the same as the console script."""

from leaderboard.cli import main

main()
