"""Recipes, schedules, the training loop, and a callback for transformers' Trainer."""
