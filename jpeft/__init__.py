"""Parameter-efficient fine-tuning of T5-family models in JAX and Flax."""

__version__ = "0.1.0"
