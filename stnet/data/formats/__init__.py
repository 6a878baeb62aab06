"""Annotation formats, one file each, and what brings their contents into a data set."""
