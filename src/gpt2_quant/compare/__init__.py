"""Results side by side: paired tests, tables, figures, and verdicts on the published claims."""
