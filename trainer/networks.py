"""Actors and critics as stacked parameters: the first dimension of every tensor is the agent.

A day's inputs become a short code (tanh of a linear map), the codes of the last `context` days a
hidden vector, to which the portfolio (and, for a critic, the action) adds its own linear map. The
part that depends on the day alone is computed once per agent and day, never once per overlapping
window. Layer normalisation looks at one agent's one state, so nothing leaks between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

Params = dict[str, torch.Tensor]

NEURONS = {
    "day.w": "day", "day.b": "day", "window.w": "first", "book.w": "first", "book.b": "first",
    "hidden.w": "second", "hidden.b": "second", "out.w": "out", "out.b": "out",
}  # fmt: skip
"""Which layer of neurons a tensor's last dimension belongs to."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a network: inputs of a day, days, their code, portfolio numbers, width, outputs."""

    inputs: int
    context: int
    day_width: int
    book: int
    hidden: int
    outputs: int

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each tensor of one agent."""
        return {
            "day.w": (self.inputs, self.day_width), "day.b": (1, self.day_width),
            "window.w": (self.context * self.day_width, self.hidden),
            "book.w": (self.book, self.hidden), "book.b": (1, self.hidden),
            "hidden.w": (self.hidden, self.hidden), "hidden.b": (1, self.hidden),
            "out.w": (self.hidden, self.outputs), "out.b": (1, self.outputs),
        }  # fmt: skip


def initial(shape: Shape, agents: int, generator: torch.Generator) -> Params:
    """Fresh parameters on the CPU: normal with deviation 1/sqrt(inputs), outputs a tenth of it."""
    params = {}
    for name, (rows, columns) in shape.sizes().items():
        if name.endswith(".b"):
            params[name] = torch.zeros(agents, rows, columns)
        else:
            scale = rows**-0.5 * (0.1 if name == "out.w" else 1.0)
            params[name] = scale * torch.randn(agents, rows, columns, generator=generator)
    return params


def stacked(first: Params, second: Params) -> Params:
    """Two groups of agents as one."""
    return {name: torch.cat([first[name], second[name]]) for name in first}


def day_codes(params: Params, inputs: torch.Tensor) -> torch.Tensor:
    """Codes [P, ..., E] of days [..., I] that all agents see alike."""
    flat = torch.matmul(inputs.reshape(-1, inputs.shape[-1]), params["day.w"]) + params["day.b"]
    return torch.tanh(flat).reshape(len(flat), *inputs.shape[:-1], -1)


def window_codes(params: Params, codes: torch.Tensor, context: int) -> torch.Tensor:
    """Hidden part [P, n, H] of n windows over day codes [P, n + context - 1, E]."""
    windows = codes.unfold(1, context, 1).transpose(2, 3)
    return torch.bmm(windows.reshape(*windows.shape[:2], -1), params["window.w"])


def sampled_codes(params: Params, inputs: torch.Tensor) -> torch.Tensor:
    """Hidden part [P, B, H] of each agent's own windows [P, B, context, I]."""
    agents, batch, context, width = inputs.shape
    flat = inputs.reshape(agents, batch * context, width)
    codes = torch.tanh(torch.baddbmm(params["day.b"], flat, params["day.w"]))
    return torch.bmm(codes.reshape(agents, batch, -1), params["window.w"])


def head(params: Params, market: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Outputs [P, B, out] from the market's hidden part [P, B, H] and the book [P, B, K]."""
    width = market.shape[-1:]
    x = market + torch.baddbmm(params["book.b"], book, params["book.w"])
    x = torch.relu(F.layer_norm(x, width))
    x = torch.baddbmm(params["hidden.b"], x, params["hidden.w"])
    x = torch.relu(F.layer_norm(x, width))
    return torch.baddbmm(params["out.b"], x, params["out.w"])


def act(params: Params, market: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Actions in [-1, 1]: what is above zero is a wish to own."""
    return torch.tanh(head(params, market, book))


def value(
    params: Params, market: torch.Tensor, book: torch.Tensor, action: torch.Tensor
) -> torch.Tensor:
    """Values [P, B] of actions [P, B, A]."""
    return head(params, market, torch.cat([book, action], dim=-1)).squeeze(-1)
