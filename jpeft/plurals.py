"""Numbers with their nouns."""


def number_of(count: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2,000 rows`; a plural that is not the noun and an s has to be given."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
