import jax

# Sharded programs deserve more than one device. Before any test module computes something on import.
jax.config.update("jax_num_cpu_devices", 4)
