"""`quantvm tune`: a model's convolutions are measured, and the fastest schedules are kept in a file."""
