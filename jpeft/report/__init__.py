"""Reports: tables and figures from result files, beside the published numbers. Reads JSON and never loads JAX."""
