"""How a model is executed: rewritten for inference, in one precision, on one device, each frame computed once."""
