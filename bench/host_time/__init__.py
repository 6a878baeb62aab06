"""Host time of a call without a GPU: everything that Python, PyTorch and Triton do until a kernel would be launched."""
