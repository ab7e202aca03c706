"""What all packages share: checks of arguments, files and hashes, imports on first use, documents in files."""
