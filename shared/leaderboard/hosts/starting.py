"""Imported first by a function's main.py: the garbage collector looks rarely until a host has
all it needs (see collector.py)."""

from leaderboard.hosts import collector

collector.start()
