"""Annotation files: read (`entries`), compared with their frames (`facts`), repaired (`plan`, `repairs`)."""
