"""`quantvm diff`: which layers of two computations differ, and why."""
