"""The operators in other people's models, without compiling anything."""
