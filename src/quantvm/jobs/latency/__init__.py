"""`quantvm bench`: how long a call takes, compared with other engines."""
