"""Clips of a video: which frames they hold (`planning`), transforms, and the data set that training reads."""
