"""The format: integers of 2 to 16 bits (32 in accumulators) that share an exponent, as JAX arrays."""
