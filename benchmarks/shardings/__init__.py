"""Training steps sharded in the usual ways: what runs in native code, what the devices exchange, and whether
the results are those of one device."""
