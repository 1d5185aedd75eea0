"""Files of rows to examples."""
