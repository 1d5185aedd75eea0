"""Sets of tests by which models are compared in publications: how their files are read, and what
counts as right."""
