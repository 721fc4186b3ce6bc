"""Transform: trace a function, rewrite its convolutions and dot products, and run it again."""

from dfpjax.transform._mixed_precision import mixed_precision as mixed_precision
