"""What the results of all jobs share: exit codes, rows, tables, the run folder. A job's own text is in its folder."""
