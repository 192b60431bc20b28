"""Deep deterministic policy gradient (Lillicrap et al., 2015), all learners updated together.

Every tensor carries the learner as its first dimension; losses are summed over learners, so each
learner's gradient is its own. An update is: gradients (summed over micro-batches), divided by
their number, clipped to a norm for each learner alone, then Adam. Nothing touches a gradient
between the clipping and the step.
"""

from __future__ import annotations

import math

import torch

from trainer import networks
from trainer.networks import Params, Shape
from trainer.settings import Settings


class Adam:
    """Adam (Kingma and Ba, 2015) with its usual constants, on stacked parameters.

    The same steps as torch.optim.Adam, whose import of the compiler costs each start a second
    and 100 MB.
    """

    BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, params: Params, rate: float) -> None:
        self.params, self.rate = params, rate
        self.steps = 0
        self.mean = {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}
        self.square = {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter by its gradient."""
        self.steps += 1
        rate = self.rate / (1 - self.BETA_1**self.steps)
        correction = math.sqrt(1 - self.BETA_2**self.steps)
        for name, p in self.params.items():
            if p.grad is None:
                continue
            mean, square = self.mean[name], self.square[name]
            mean.lerp_(p.grad, 1 - self.BETA_1)
            square.mul_(self.BETA_2).addcmul_(p.grad, p.grad, value=1 - self.BETA_2)
            p.addcdiv_(mean, square.sqrt().div_(correction).add_(self.EPSILON), value=-rate)


def clip(gradients: list[torch.Tensor], limit: float, scale: float = 1.0) -> torch.Tensor:
    """Divide by `scale`, then bound each learner's norm over all tensors; returns norms [L].

    In place. The norms are those before the clipping and after the scaling.
    """
    for gradient in gradients:
        gradient.div_(scale)
    squares = torch.stack([g.square().flatten(1).sum(1) for g in gradients])
    norms = squares.sum(0).sqrt()
    factor = (limit / norms.clamp_min(1e-12)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


class Learners:
    """Actors, critics, their targets and their optimisers."""

    def __init__(
        self, actor_shape: Shape, critic_shape: Shape, settings: Settings,
        generator: torch.Generator, device: torch.device,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.context = settings.context
        count = settings.learners
        self.actor = _leaves(networks.initial(actor_shape, count, generator), device)
        self.critic = _leaves(networks.initial(critic_shape, count, generator), device)
        self.actor_target = {name: p.detach().clone() for name, p in self.actor.items()}
        self.critic_target = {name: p.detach().clone() for name, p in self.critic.items()}
        self._actor_adam = Adam(self.actor, settings.actor_rate)
        self._critic_adam = Adam(self.critic, settings.critic_rate)

    def update(self, inputs: torch.Tensor, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """One update from micro-batches of [L, B] transitions; returns critic losses [L]."""
        total = torch.zeros(self.settings.learners, device=inputs.device)
        _clear(self.critic)
        for batch in batches:
            losses = self.critic_losses(inputs, batch)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
        self._step(self._critic_adam, len(batches))
        _clear(self.actor)
        frozen = {name: p.detach() for name, p in self.critic.items()}
        for batch in batches:
            self.actor_losses(inputs, batch, frozen).sum().backward()  # type: ignore[no-untyped-call]
        self._step(self._actor_adam, len(batches))
        self._follow()
        return total / len(batches)

    def critic_losses(self, inputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared temporal difference of each learner, [L]."""
        with torch.no_grad():
            after = self._windows(inputs, batch["day"].long() + 1)
            codes = networks.sampled_codes(self.actor_target, after)
            action = networks.act(self.actor_target, codes, batch["next_book"])
            codes = networks.sampled_codes(self.critic_target, after)
            later = networks.value(self.critic_target, codes, batch["next_book"], action)
            goal = batch["reward"] + self.settings.discount * later * (~batch["done"]).float()
        codes = networks.sampled_codes(self.critic, self._windows(inputs, batch["day"].long()))
        now = networks.value(self.critic, codes, batch["book"], batch["action"])
        return (now - goal).square().mean(1)

    def actor_losses(
        self, inputs: torch.Tensor, batch: dict[str, torch.Tensor], critic: Params
    ) -> torch.Tensor:
        """Minus the mean value of each learner's own actions, [L]."""
        windows = self._windows(inputs, batch["day"].long())
        action = networks.act(
            self.actor, networks.sampled_codes(self.actor, windows), batch["book"]
        )
        codes = networks.sampled_codes(critic, windows)
        return -networks.value(critic, codes, batch["book"], action).mean(1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, targets and optimiser moments by name."""
        result: dict[str, torch.Tensor] = {}
        for group, params in self._groups().items():
            result |= {f"{group}/{name}": p.detach() for name, p in params.items()}
        for group, adam in self._optimisers().items():
            result[f"{group}/steps"] = torch.tensor(adam.steps)
        return result

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave, by copy."""
        with torch.no_grad():
            for group, params in self._groups().items():
                for name, p in params.items():
                    p.copy_(tensors[f"{group}/{name}"])
        for group, adam in self._optimisers().items():
            adam.steps = int(tensors[f"{group}/steps"])

    def _groups(self) -> dict[str, Params]:
        moments = {
            f"{group}/{moment}": params
            for group, adam in self._optimisers().items()
            for moment, params in (("mean", adam.mean), ("square", adam.square))
        }
        return {"actor": self.actor, "critic": self.critic, "actor_target": self.actor_target,
                "critic_target": self.critic_target, **moments}  # fmt: skip

    def _optimisers(self) -> dict[str, Adam]:
        return {"actor_adam": self._actor_adam, "critic_adam": self._critic_adam}

    def _windows(self, inputs: torch.Tensor, days: torch.Tensor) -> torch.Tensor:
        back = torch.arange(1 - self.context, 1, device=days.device)
        return inputs[days.unsqueeze(-1) + back]

    def _step(self, adam: Adam, scale: int) -> None:
        gradients = [p.grad for p in adam.params.values() if p.grad is not None]
        clip(gradients, self.settings.clip, float(scale))
        adam.step()

    @torch.no_grad()
    def _follow(self) -> None:
        for target, params in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            for name, p in params.items():
                target[name].lerp_(p, self.settings.tau)


def _leaves(params: Params, device: torch.device) -> Params:
    return {name: p.to(device).requires_grad_() for name, p in params.items()}


def _clear(params: Params) -> None:
    for p in params.values():
        p.grad = None
