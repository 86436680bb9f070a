"""Many runs as one: which cells there are, what state each is in, and who works on them (docs/grid.md)."""
