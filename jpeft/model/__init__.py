"""Networks of two families (T5, decoder-only), generation, checkpoints, tokenizers. Knows no PEFT method, no task."""
