"""Contractions (the common form of convolutions and dot products), their plans and the plans' arithmetic."""
