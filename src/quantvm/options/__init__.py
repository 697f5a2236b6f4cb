"""Options, each declared once: its name, type, default, help, how the command line reads it, and what it may be."""
