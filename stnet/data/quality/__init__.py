"""What `python -m stnet.data.check` finds, corrects and counts."""
