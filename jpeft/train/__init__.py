"""Training: schedule, optimizer, steps, and a fine-tuning run from its config to its result."""
