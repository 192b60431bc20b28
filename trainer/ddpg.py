"""Deep deterministic policy gradient (Lillicrap et al., 2015), all learners updated together.

Every tensor carries the learner as its first dimension; losses are summed over learners, so each
learner's gradient is its own. An update is: gradients (summed over micro-batches), divided by
their number, clipped to a norm for each learner alone, then Adam. Nothing touches a gradient
between the clipping and the step. Learners are worked on in groups, which bounds the memory.

What `share` has given away is never written to: the next update works on copies. So the state of
a generation's boundary can be kept, and written to disk, without copying it first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from trainer import networks
from trainer.crew import ALONE, Crew
from trainer.environment import Exchange
from trainer.networks import Params, Shape
from trainer.recorder import named, under
from trainer.rollout import Transitions, groups, of_group
from trainer.settings import Settings

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
NETWORKS = ("actor", "critic", "actor_target", "critic_target")
NEEDED = {"critic": ("critic", "actor_target", "critic_target"), "actor": ("actor", "critic")}
"""What the losses of a network are computed from."""
MOMENTS = ("actor_mean", "actor_square", "critic_mean", "critic_square")


def clip(gradients: list[torch.Tensor], limit: float, scale: float = 1.0) -> torch.Tensor:
    """Divide by `scale`, then bound each learner's norm over all tensors; returns norms [L].

    In place. The norms are those before the clipping and after the scaling.
    """
    torch._foreach_div_(gradients, scale)
    squares = torch.stack([g.square().flatten(1).sum(1) for g in gradients])
    norms = squares.sum(0).sqrt()
    factor = (limit / norms.clamp_min(1e-12)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


@torch.no_grad()
def adam(params: Params, gradients: Params, mean: Params, square: Params, rate: float, steps: int,
         decay: float = 0.0) -> None:  # fmt: skip
    """Step number `steps` of Adam (Kingma and Ba, 2015) with decoupled weight decay, in place.

    The same steps as torch.optim.AdamW, whose import of the compiler costs each start a second
    and 100 MB.
    """
    size = rate / (1 - BETA_1**steps)
    correction = math.sqrt(1 - BETA_2**steps)
    names = list(params)
    moved, slopes, means, squares = ([one[n] for n in names]
                                     for one in (params, gradients, mean, square))  # fmt: skip
    # a few launches for all tensors: on a GPU they cost more than the numbers
    torch._foreach_lerp_(means, slopes, 1 - BETA_1)
    torch._foreach_mul_(squares, BETA_2)
    torch._foreach_addcmul_(squares, slopes, slopes, value=1 - BETA_2)
    torch._foreach_mul_(moved, 1 - rate * decay)
    sizes = torch._foreach_sqrt(squares)
    torch._foreach_div_(sizes, correction)
    torch._foreach_add_(sizes, EPSILON)
    torch._foreach_addcdiv_(moved, means, sizes, value=-size)


class Learners:
    """Actors, critics, their targets and the moments of their optimisers."""

    def __init__(
        self, actor_shape: Shape, critic_shape: Shape, settings: Settings,
        generator: torch.Generator, device: torch.device,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.count, self.steps = settings.learner_count, 0
        actor = _on(networks.initial(actor_shape, self.count, generator), device)
        critic = _on(networks.initial(critic_shape, self.count, generator), device)
        self.nets: dict[str, Params] = {
            "actor": actor, "critic": critic,
            "actor_target": _like(actor, torch.clone), "critic_target": _like(critic, torch.clone),
            "actor_mean": _like(actor, torch.zeros_like),
            "actor_square": _like(actor, torch.zeros_like),
            "critic_mean": _like(critic, torch.zeros_like),
            "critic_square": _like(critic, torch.zeros_like),
        }  # fmt: skip
        self._shared = False

    @property
    def actor(self) -> Params:
        """The learners' actors."""
        return self.nets["actor"]

    def update(
        self, exchange: Exchange, batches: list[Transitions], crew: Crew = ALONE
    ) -> torch.Tensor:
        """One update from micro-batches of [L, B] transitions; returns critic losses [L].

        Of a crew, only this worker's groups are updated: `come_together` gives them to all.
        """
        self._unshare()
        self.steps += 1
        losses = torch.zeros(self.count, device=self.actor["out.b"].device)
        for index, group in enumerate(groups(self.count, self.settings.group)):
            if crew.owns(index):
                own = [of_group(batch, group) for batch in batches]
                found = self._update_group(exchange, self._of(group), own)
                losses[group.start : group.stop] = found
        return losses

    def come_together(self, losses: torch.Tensor, crew: Crew) -> torch.Tensor:
        """Every worker takes over what the others' updates have come to; returns all losses."""
        if crew.size == 1:
            return losses
        each = groups(self.count, self.settings.group)

        def work(index: int) -> Params:
            group, found = each[index], {"losses": losses[each[index].start : each[index].stop]}
            for name, params in self._of(group).items():
                found |= {f"{name}/{key}": p for key, p in params.items()}
            return found

        parts = crew.gather(len(each), work)
        for group, part in zip(each, parts, strict=True):
            for name, params in self._of(group).items():
                for key, p in params.items():
                    p.copy_(part[f"{name}/{key}"])
        return torch.cat([part["losses"] for part in parts])

    def critic_losses(
        self, exchange: Exchange, nets: dict[str, Params], batch: Transitions
    ) -> torch.Tensor:
        """Mean squared temporal difference of each learner, [L]."""
        day, market = batch["day"].long(), exchange.market
        with torch.no_grad():
            book = exchange.beside(batch["next_book"])
            seen, present = market.view.at(day + 1), market.present[day + 1]
            part = networks.market_part(nets["actor_target"], seen, present, market.places)
            action = networks.act(nets["actor_target"], part, book, market.listed[day + 1])
            part = networks.market_part(nets["critic_target"], seen, present, market.places)
            later = networks.value(nets["critic_target"], part, book, action)
            goal = batch["reward"] + self.settings.discount * later * (~batch["done"]).float()
        seen, present = market.view.at(day), market.present[day]
        part = networks.market_part(nets["critic"], seen, present, market.places)
        book = exchange.beside(batch["book"])
        now = networks.value(nets["critic"], part, book, batch["action"])
        return (now - goal).square().mean(1)

    def actor_losses(
        self, exchange: Exchange, nets: dict[str, Params], batch: Transitions
    ) -> torch.Tensor:
        """Minus the mean value of each learner's own actions, [L]."""
        day, market = batch["day"].long(), exchange.market
        seen, present = market.view.at(day), market.present[day]
        book = exchange.beside(batch["book"])
        part = networks.market_part(nets["actor"], seen, present, market.places)
        action = networks.act(nets["actor"], part, book, market.listed[day])
        with torch.no_grad():
            part = networks.market_part(nets["critic"], seen, present, market.places)
        return -networks.value(nets["critic"], part, book, action).mean(1)

    def share(self) -> dict[str, Params]:
        """All tensors as they are now, without a copy; nothing writes to them from here on."""
        self._shared = True
        return {name: dict(params) for name, params in self.nets.items()}

    def take(self, nets: dict[str, Params], steps: int) -> None:
        """Go on from tensors of the same shapes, which are not written to."""
        device = self.actor["out.b"].device
        self.nets = {name: _on(nets[name], device) for name in self.nets}
        self.steps, self._shared = steps, True

    def _of(self, group: range) -> dict[str, Params]:
        return {name: of_group(params, group) for name, params in self.nets.items()}

    def _update_group(
        self, exchange: Exchange, nets: dict[str, Params], batches: list[Transitions]
    ) -> torch.Tensor:
        batch = {name: torch.stack([one[name] for one in batches]) for name in batches[0]}
        losses = self._descend(exchange, nets, batch, "critic")
        self._descend(exchange, nets, batch, "actor")
        for name in ("actor", "critic"):
            torch._foreach_lerp_([*nets[f"{name}_target"].values()], [*nets[name].values()],
                                 self.settings.tau)  # fmt: skip
        return losses / len(batches)

    def _descend(
        self, exchange: Exchange, nets: dict[str, Params], batch: Transitions, name: str
    ) -> torch.Tensor:
        """One step of one network from micro-batches [M, L, B, ...]; the sum of the losses [L]."""
        given = named("batch", batch)
        for other in NEEDED[name]:
            given |= named(other, nets[other])
        work = partial(self._gradients, exchange, name)
        if exchange.market.view.table is None:  # then a day is looked up by the CPU
            found = work(given)
        else:
            key = (f"gradients of the {name}", self.settings.discount)
            found = exchange.recorder.run(key, work, given, keep=False)
        gradients, group = under("gradient", found), nets[name]
        rate = self.settings.critic_rate if name == "critic" else self.settings.actor_rate
        clip([*gradients.values()], self.settings.clip, float(len(batch["day"])))
        adam({key: group[key] for key in gradients}, gradients, nets[f"{name}_mean"],
             nets[f"{name}_square"], rate, self.steps, self.settings.decay)  # fmt: skip
        return found["losses"].clone()

    def _gradients(self, exchange: Exchange, name: str, given: Params) -> Params:
        """`losses` [L] and each `gradient/...`, summed over the micro-batches."""
        nets = {other: under(other, given) for other in NEEDED[name]}
        nets[name] = _leaves(nets[name])
        losses_of = self.critic_losses if name == "critic" else self.actor_losses
        total = torch.zeros(len(nets[name]["out.b"]), device=nets[name]["out.b"].device)
        columns = under("batch", given)
        for index in range(len(columns["day"])):
            losses = losses_of(exchange, nets, {key: c[index] for key, c in columns.items()})
            losses.sum().backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
        gradients = {key: p.grad for key, p in nets[name].items() if p.grad is not None}
        return {"losses": total, **named("gradient", gradients)}

    def _unshare(self) -> None:
        if self._shared:
            for params in self.nets.values():
                for name in params:
                    params[name] = params[name].clone()
            self._shared = False


def _on(params: Params, device: torch.device) -> Params:
    return {name: p.to(device) for name, p in params.items()}


def _like(params: Params, make: Callable[[torch.Tensor], torch.Tensor]) -> Params:
    return {name: make(p) for name, p in params.items()}


def _leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}
