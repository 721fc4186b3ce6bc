"""The format: JAX arrays of integers with 2 to 16 bits (32 in accumulators) that share an exponent."""
