"""The sides: what is measured, one function each, run in a process of its own."""
