"""Options, each declared once: its name, type, default, help, spelling on the command line, and check."""
