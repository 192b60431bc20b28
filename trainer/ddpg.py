"""Deep deterministic policy gradient (Lillicrap et al., 2015), all learners updated together.

Every tensor carries the learner as its first dimension; losses are summed over learners, so each
learner's gradient is its own. An update is: gradients (summed over micro-batches), divided by
their number, clipped to a norm for each learner alone, then Adam. Nothing touches a gradient
between the clipping and the step.
"""

from __future__ import annotations

import torch

from trainer import networks
from trainer.networks import Params, Shape
from trainer.settings import Settings


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
        self._actor_adam = _adam(self.actor, settings.actor_rate)
        self._critic_adam = _adam(self.critic, settings.critic_rate)

    def update(self, inputs: torch.Tensor, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """One update from micro-batches of [L, B] transitions; returns critic losses [L]."""
        total = torch.zeros(self.settings.learners, device=inputs.device)
        _clear(self.critic)
        for batch in batches:
            losses = self.critic_losses(inputs, batch)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
        self._step(self._critic_adam, self.critic, len(batches))
        _clear(self.actor)
        frozen = {name: p.detach() for name, p in self.critic.items()}
        for batch in batches:
            self.actor_losses(inputs, batch, frozen).sum().backward()  # type: ignore[no-untyped-call]
        self._step(self._actor_adam, self.actor, len(batches))
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
        for group, params, adam in self._optimisers():
            for name, p in params.items():
                for moment, tensor in adam.state[p].items():
                    result[f"{group}/{name}/{moment}"] = tensor
        return result

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave, by copy."""
        with torch.no_grad():
            for group, params in self._groups().items():
                for name, p in params.items():
                    p.copy_(tensors[f"{group}/{name}"])
        for group, params, adam in self._optimisers():
            adam.state.clear()
            for name, p in params.items():
                moments = {
                    moment: tensors[f"{group}/{name}/{moment}"]
                    for moment in ("step", "exp_avg", "exp_avg_sq")
                    if f"{group}/{name}/{moment}" in tensors
                }
                for moment, tensor in moments.items():
                    target = tensor.device if moment == "step" else p.device
                    adam.state[p][moment] = tensor.detach().to(target, copy=True)

    def _groups(self) -> dict[str, Params]:
        return {"actor": self.actor, "critic": self.critic,
                "actor_target": self.actor_target, "critic_target": self.critic_target}  # fmt: skip

    def _optimisers(self) -> list[tuple[str, Params, torch.optim.Adam]]:
        return [("actor_adam", self.actor, self._actor_adam),
                ("critic_adam", self.critic, self._critic_adam)]  # fmt: skip

    def _windows(self, inputs: torch.Tensor, days: torch.Tensor) -> torch.Tensor:
        back = torch.arange(1 - self.context, 1, device=days.device)
        return inputs[days.unsqueeze(-1) + back]

    def _step(self, adam: torch.optim.Adam, params: Params, scale: int) -> None:
        gradients = [p.grad for p in params.values() if p.grad is not None]
        clip(gradients, self.settings.clip, float(scale))
        adam.step()

    @torch.no_grad()
    def _follow(self) -> None:
        for target, params in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            for name, p in params.items():
                target[name].lerp_(p, self.settings.tau)


def _leaves(params: Params, device: torch.device) -> Params:
    return {name: p.to(device).requires_grad_() for name, p in params.items()}


def _adam(params: Params, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(list(params.values()), lr=rate, foreach=False)


def _clear(params: Params) -> None:
    for p in params.values():
        p.grad = None
