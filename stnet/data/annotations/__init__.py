"""Annotation files: read (`entries`), compared with frames (`facts`), repaired (`plan`, `box_repair`, `repairs`)."""
