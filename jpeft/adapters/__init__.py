"""Adapters as files, in our layout and in Hugging Face PEFT's: saved, opened, merged into a base, described."""
