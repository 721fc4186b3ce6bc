"""JAX's own bfloat16 in the form that is fastest on CPUs: how the benchmarks compile it.

Operands and results of convolutions and dot products are bfloat16, forward and backward, as Flax's
`dtype=bfloat16` has them; parameters, optimizer, statistics of normalizations and softmax are float32. Where
the CPU multiplies bfloat16 (`avx512_bf16`, AMX), jaxlib 0.11.1 and later then compute, of a step:

- convolutions, and dot products whose left operand is summed over its first axis, as weight gradients are, in
  oneDNN unless they are small, but only with the option below. Without it both are converted to float32,
  which is no faster than float32 itself. Convolutions that oneDNN does not take stay so: the gradients of
  inputs, unless the window has a single tap;
- all other dot products in YNNPACK or, before jaxlib 0.12, oneDNN.

Both add products in float32. Earlier releases know the option, but compute everything in float32, except dot
products with float32 results.

Results of dot products are not float32, although YNNPACK is as fast with these, because XLA then drops the
rounding of operands that were float32 and multiplies in float32. Without the option, operands of weight
gradients in float32 would have to be transposed by the program to gain anything, convolutions would gain
nothing, and jaxlib 0.12 cannot run some dot products of bfloat16 with float32 results, as in an LSTM.
"""

COMPILER_OPTIONS = {"xla_cpu_experimental_onednn_custom_call": True}
"""For `jax.stages.Lowered.compile`, and `jax.jit`."""
