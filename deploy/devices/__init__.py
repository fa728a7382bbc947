"""Places that run a bundle: this machine, a board over ssh, many of them at once."""
