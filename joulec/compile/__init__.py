"""The stages of compiling one module for one target: what is run, measured and chosen, and the book of it."""
