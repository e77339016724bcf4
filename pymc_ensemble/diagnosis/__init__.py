"""What the draws of a run are worth, and what can be made of them."""
