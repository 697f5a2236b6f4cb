"""Files: what strangers wrote, what is written for the user, archives, downloads, temporary folders."""
