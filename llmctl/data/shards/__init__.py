"""Documents as token ids in Arrow files, and how they become rows of a batch."""
