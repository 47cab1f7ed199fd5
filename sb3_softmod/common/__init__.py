"""Errors, checks of arguments, files written whole, where the task sits in an observation. Imports nothing of ours."""
