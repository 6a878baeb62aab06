"""How good detections are: figures, curves and reports on videos and stills."""
