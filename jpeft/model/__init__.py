"""Networks (T5 and decoder-only models), generation, checkpoints and tokenizers, without knowledge of PEFT or tasks."""
