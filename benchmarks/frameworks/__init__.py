"""Models of other libraries in DFP16: how far outputs and gradients are from float32."""
