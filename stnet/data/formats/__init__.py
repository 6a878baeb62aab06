"""Annotation formats of other tools: one file each, from a marks file to marks and back."""
