"""Tournament leaderboards: one ordered log of events, and everything people see as its fold."""
