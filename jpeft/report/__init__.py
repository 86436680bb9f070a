"""Result files and the published numbers as tables. Reads JSON and nothing else of jpeft."""
