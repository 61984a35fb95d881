"""Everything that people see: text, tables, charts, pages, progress.

No numbers are made here.
"""
