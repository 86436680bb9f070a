"""Answers to rows of text, with any model and adapter: rows in, prompts, answers by window, a file that goes on."""
