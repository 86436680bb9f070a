"""Data and model parallelism: the device mesh and the sharding rules (docs/mesh.md)."""
