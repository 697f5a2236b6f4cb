"""Files: opening untrusted ones, writing those for the user, archives, downloads, temporary folders."""
