import contextlib

import jax

# shard_map deserves more than one device. Too late if another test module has computed something on import.
with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", 4)
