"""Readers of files of rows, possibly untrusted, within limits: JSON lines, JSON, CSV, TSV and Parquet.

The rest of jpeft calls `reading`. `text` reads plain lines and JSON, `separated` and `tabbed` CSV and TSV, `parquet`
Parquet; `packed` decompresses; `values` converts values to text. The user's documentation is docs/data.md.
"""
