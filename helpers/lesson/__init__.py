"""What the notebook shows, measures and lets you click, besides training."""
