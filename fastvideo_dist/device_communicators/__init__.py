"""What a coordinator's calls are made of, per device; FastVideo's import paths."""
