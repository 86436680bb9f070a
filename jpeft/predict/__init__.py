"""Answers rows of text with any model and adapter, to standard output or a resumable file; evaluates labelled rows."""
