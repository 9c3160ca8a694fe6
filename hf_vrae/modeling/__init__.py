"""What travels to the Hub with a checkpoint: see CONTRIBUTING.md, "The law of the travelling code"."""
