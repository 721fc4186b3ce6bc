"""The figures in README.md and docs, read from docs/results."""
