"""The commands of the command line, one file each, and the code they share: options, loading, progress."""
