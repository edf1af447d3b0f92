"""Turns the recordings of voice messages into text."""
