"""Several devices as one: which device holds which part of what (docs/mesh.md)."""
