"""The Triton backend: device code, and the host side that describes its launches as data and runs them."""
