"""The GPU training process: evolutionary reinforcement learning on market data.

A population of actors is evolved by tournament selection, crossover and mutation while DDPG
learners follow gradients on everybody's experience and are injected into the population
(Khadka and Tumer, "Evolution-Guided Policy Gradient in Reinforcement Learning", 2018).

Reading order: `settings` (what can be said), `csv_reader`, `features` and `market` (the data),
`environment` and `networks` (one step of everybody as one batch), `rollout`, `evolution`,
`replay` and `ddpg` (learning), `state` and `training` (one generation), `checkpoint` and `saver`
(what survives), `session` (the life of a run) and `cli`.

Nothing here knows of the sidecar or of any cloud: a finished directory under CHECKPOINT_DIR is the
whole of the contract.
"""

__version__ = "0.1.0"
