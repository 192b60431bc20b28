"""Actors and critics as stacked parameters: the first dimension of every tensor is the agent.

One small network looks at every series with the same weights (the topology of Jiang, Xu and Liang,
"A deep reinforcement learning framework for the financial portfolio management problem", 2017):
what it learns of one series it knows of all, and a market of S series teaches it S lessons a day.

    seen [S, I] -> first -> relu = what each series looks like
    its mean over the listed series      = the climate of the market
    series + climate + portfolio -> head -> hidden -> a score for each tradable series, and for cash

An actor's weights are the softmax of the scores. A critic's `hidden` also sees the weights that are
wanted, and its value is a sum over the tradable series. What depends on the day alone is computed
once per agent and day. Layer normalisation looks at one series of one state, so nothing leaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

Params = dict[str, torch.Tensor]

NEURONS = {
    "first.w": "first", "first.b": "first", "series.w": "head", "climate.w": "head",
    "book.w": "head", "head.b": "head", "hidden.w": "hidden", "hidden.b": "hidden",
    "out.w": "out", "out.b": "out", "rest.w": "rest", "rest.b": "rest",
}  # fmt: skip
"""Which layer of neurons a tensor's last dimension belongs to."""
LISTED = -1  # the place of the mask among the numbers of a day


@dataclass(frozen=True)
class Shape:
    """Sizes of a network: inputs of a series, portfolio numbers of a series, width, outputs."""

    inputs: int
    book: int
    hidden: int
    outputs: int

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each tensor of one agent."""
        wide = self.hidden
        return {
            "first.w": (self.inputs, wide), "first.b": (1, wide),
            "series.w": (wide, wide), "climate.w": (wide, wide),
            "book.w": (self.book, wide), "head.b": (1, wide),
            "hidden.w": (wide, wide), "hidden.b": (1, wide),
            "out.w": (wide, self.outputs), "out.b": (1, self.outputs),
            "rest.w": (wide, 1), "rest.b": (1, 1),
        }  # fmt: skip

    @property
    def parameters(self) -> int:
        """Numbers in one agent."""
        return sum(rows * columns for rows, columns in self.sizes().values())


def initial(shape: Shape, agents: int, generator: torch.Generator) -> Params:
    """Fresh parameters on the CPU: normal with deviation 1/sqrt(inputs), outputs a tenth of it."""
    params = {}
    for name, (rows, columns) in shape.sizes().items():
        if name.endswith(".b"):
            params[name] = torch.zeros(agents, rows, columns)
        else:
            scale = rows**-0.5 * (0.1 if name in ("out.w", "rest.w") else 1.0)
            params[name] = scale * torch.randn(agents, rows, columns, generator=generator)
    return params


def stacked(first: Params, second: Params) -> Params:
    """Two groups of agents as one."""
    return {name: torch.cat([first[name], second[name]]) for name in first}


def market_part(
    params: Params, seen: torch.Tensor, listed: torch.Tensor, tradable: torch.Tensor
) -> torch.Tensor:
    """What the market alone gives to `head`: [P, n, A, H].

    `seen` is [n, S, I] where all agents see the same days, or [P, n, S, I]; `listed` [n, S] or
    [P, n, S]; `tradable` [A] are the places of the tradable series.
    """
    agents = len(params["first.w"])
    if seen.dim() == 3:
        flat = seen.reshape(1, -1, seen.shape[-1]).expand(agents, -1, -1)
        listed = listed.expand(agents, -1, -1)
    else:
        flat = seen.reshape(agents, -1, seen.shape[-1])
    days, series = listed.shape[1:]
    x = torch.baddbmm(params["first.b"], flat, params["first.w"])
    x = _settled(x).view(agents, days, series, -1)
    here = listed.to(x.dtype)
    count = here.sum(-1, keepdim=True).clamp_min(1.0)
    climate = torch.matmul((here / count).unsqueeze(2), x).squeeze(2)
    own = x[:, :, tradable] if len(tradable) != series else x
    part = torch.bmm(own.flatten(1, 2), params["series.w"]).view(agents, days, len(tradable), -1)
    return part + torch.bmm(climate, params["climate.w"]).unsqueeze(2)


def head(params: Params, market: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Hidden [P, n, A, H] from the market's part [P, n, A, H] and the portfolio [P, n, A, K]."""
    agents, _, _, width = market.shape
    x = torch.baddbmm(params["head.b"], book.reshape(agents, -1, book.shape[-1]), params["book.w"])
    x = _settled(x + market.reshape(agents, -1, width))
    x = _settled(torch.baddbmm(params["hidden.b"], x, params["hidden.w"]))
    return x.view(market.shape)


def scores(params: Params, market: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Scores [P, n, A + 1]: of each tradable series, and of cash."""
    x = head(params, market, book)
    agents = len(x)
    own = torch.baddbmm(params["out.b"], x.flatten(1, 2), params["out.w"])
    rest = torch.baddbmm(params["rest.b"], x.mean(2), params["rest.w"])
    return torch.cat([own.view(agents, x.shape[1], -1), rest], dim=-1)


def act(
    params: Params, market: torch.Tensor, book: torch.Tensor, listed: torch.Tensor,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Target weights [P, n, A], none below zero, together with cash one; unlisted series get none.

    `listed` [..., A] is of the tradable series; `noise` [P, n, A + 1] is added to the scores.
    """
    wish = scores(params, market, book)
    if noise is not None:
        wish = wish + noise
    cash = torch.ones_like(listed[..., :1])
    wish = wish.masked_fill(~torch.cat([listed, cash], dim=-1), -torch.inf)
    return torch.softmax(wish, dim=-1)[..., :-1]


def value(
    params: Params, market: torch.Tensor, book: torch.Tensor, action: torch.Tensor
) -> torch.Tensor:
    """Values [P, n] of target weights [P, n, A]; the first number of a book is the weight held."""
    x = head(params, market, book)
    agents, days = x.shape[:2]
    gain, cost, wide = torch.baddbmm(params["out.b"], x.flatten(1, 2), params["out.w"]).view(
        agents, days, -1, 3
    ).unbind(-1)  # fmt: skip
    change = (action - book[..., 0]).abs()
    worth = gain * action - F.softplus(cost) * change - wide * action.square()
    rest = torch.baddbmm(params["rest.b"], x.mean(2), params["rest.w"]).squeeze(-1)
    return worth.sum(-1) + rest


def _settled(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(F.layer_norm(x, x.shape[-1:]))
