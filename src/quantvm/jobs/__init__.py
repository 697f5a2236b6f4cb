"""What a user has done: each folder is one job, with its configuration, its chain of calls, its result and its text."""
