"""What the command line offers, a room for each kind of work: parses, calls, prints; no logic."""
