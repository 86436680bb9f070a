"""Files of rows as people have them and as strangers make them: JSON lines, JSON, CSV, Parquet; within stated limits.

`values` says what a value must be to be text, `text` reads the formats that are text, `parquet` the one that is not;
`reading` is what the rest of jpeft calls. docs/data.md is the user's side of it.
"""
