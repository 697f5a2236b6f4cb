"""`quantvm compile`: a model into a file."""
