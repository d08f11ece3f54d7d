"""Training runs, evaluation, records and reports."""
