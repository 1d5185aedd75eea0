"""What each command does: reads artefacts from the workspace and writes one."""
