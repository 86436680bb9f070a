"""Recommends a method: from published numbers, from a user's own results, or by a search on a user's own rows."""
