"""Files of rows as people have them and as strangers make them: JSON lines, JSON, CSV, Parquet; within stated limits.

`values` says what a value must be to be text; `text` reads plain lines and JSON, `separated` CSV and TSV, `parquet` the
format that is no text; `packed` opens what is compressed; `reading` is what the rest of jpeft calls.
docs/data.md is the user's side of it.
"""
