"""What the demo chat begins with, and the scripts that made it."""
