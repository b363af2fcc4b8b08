"""The run on disk: its folder, what it was started from, what it became, and its health."""
