"""The shared folder that stages read artefacts from and write them to."""
