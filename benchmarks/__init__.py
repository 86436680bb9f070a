"""Measured comparisons of jpeft with Hugging Face transformers and PEFT on PyTorch: the same work in one run."""
