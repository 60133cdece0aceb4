"""Checkpoints of the authors -> our folders; nothing here travels to a Hub repo."""
