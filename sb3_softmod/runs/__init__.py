"""Run folders, and statistics over seeds, tables and figures of them. May import evaluation and what is below it."""
