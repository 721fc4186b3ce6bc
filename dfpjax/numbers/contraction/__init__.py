"""Contractions, the one form of every convolution and dot product; their plans, and what a plan computes."""
