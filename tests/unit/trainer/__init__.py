"""Promises of the trainer."""
