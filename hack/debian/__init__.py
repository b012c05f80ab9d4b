"""What the scripts in hack/ share about Debian's packages."""
