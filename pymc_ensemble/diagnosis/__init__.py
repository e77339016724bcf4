"""Judge the draws of a run, and correct them."""
