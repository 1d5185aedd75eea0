"""One thin module for each command: parse, call the stage, show the result."""
