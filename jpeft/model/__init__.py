"""The T5 network, its generation loop, released checkpoints and tokenizers. Knows nothing of PEFT methods or tasks."""
