"""What a checkpoint lost against what it was made from: which parts, which patterns, which settings."""
