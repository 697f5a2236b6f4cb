"""What all jobs share: a word of the user's becomes a program that can run, under an environment that is recorded."""
