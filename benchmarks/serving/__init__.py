"""Inference with frozen weights: products with few rows, and a decoder that generates text."""
