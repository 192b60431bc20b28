"""The GPU training process: evolutionary reinforcement learning on market data."""
