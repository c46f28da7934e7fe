"""What the notebook shows, measures and lets one click, beside the training itself."""
