"""Serving many adapters of one base: a bank that holds them on the device, and an HTTP server that answers from it."""
