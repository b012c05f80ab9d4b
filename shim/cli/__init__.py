"""`kata-py`, for people. Every command prints at most 80 columns, or JSON with --json."""
