"""The stacks of BabbleBox: one module each."""
