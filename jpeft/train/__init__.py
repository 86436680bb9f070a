"""Training a run: schedule, optimizer, steps, checkpoints and the loop that goes on where it was killed."""
