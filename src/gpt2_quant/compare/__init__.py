"""Results side by side: rows, paired tests, tables, figures, and the published claims held against
them.
"""
