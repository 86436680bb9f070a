"""Adapter files in jpeft's and Hugging Face PEFT's layouts: saving, loading, checks of merged models, model cards."""
