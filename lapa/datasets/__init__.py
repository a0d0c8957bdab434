"""Sources of episodes, named NAME:PATH on the command line; one file each."""
