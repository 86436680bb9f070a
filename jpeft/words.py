"""Numbers in sentences."""


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 cell`, `2,500 cells`; `several` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
