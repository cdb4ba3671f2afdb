"""The report of an evaluation: figures, tables, one page to open."""
