"""Text files to documents."""
