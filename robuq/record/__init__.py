"""What is kept of a run: its record, its telemetry, and the tracking server."""
