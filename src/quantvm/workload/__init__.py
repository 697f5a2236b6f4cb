"""What all jobs share: loading the model that the user names, quantizing it, running it, recording the environment."""
