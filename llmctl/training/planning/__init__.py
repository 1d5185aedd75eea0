"""What a training will take and come to, before it starts."""
