"""Benchmarks of jpeft against Hugging Face transformers and PEFT on PyTorch: both sides do the same work in turns."""
