"""`quantvm bench`: how long a call takes, beside other engines."""
