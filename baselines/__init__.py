"""The paper's architectures in Flax and its gradient baselines in Optax."""
