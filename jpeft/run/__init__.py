"""What keeps a run safe and visible: its directory, checkpoints, log, display, signals and processes."""
