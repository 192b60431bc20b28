"""JAX with Orbax: python -m syncd -- python jax_orbax.py"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

root = Path(os.environ.get("CHECKPOINT_DIR", "checkpoints")).absolute()


@jax.jit
def train(weights, key):
    x = jax.random.normal(key, (64, 8))
    return weights - 0.01 * jax.grad(lambda w: jnp.mean((x @ w - x.sum(1)) ** 2))(weights)


state, done = {"weights": jnp.zeros(8)}, 0
with ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions()) as manager:
    if manager.latest_step() is not None:
        done = manager.latest_step()
        state = manager.restore(done, args=ocp.args.StandardRestore(state))
        print(f"resumed at step {done}", flush=True)
    for step in range(done + 1, 200_001):
        state = {"weights": train(state["weights"], jax.random.key(step))}
        if step % 1000 == 0:
            manager.save(step, args=ocp.args.StandardSave(state))
