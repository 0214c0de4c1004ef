"""Muon for the matrices inside encoder and decoder, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes each step of a
matrix orthogonal: it moves in all directions alike, and not only in the few in which its
gradients are large. Liu et al., *Muon is Scalable for LLM Training* (arXiv 2502.16982),
scale the steps to the size of AdamW's, so that rates and weight decay have the same
meaning for both.
"""

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from going_modular.training.recipes import Recipe, build_scheduler, parameter_groups

ADAMW_RATE = 0.4  # of AdamW, for a rate of 1 of Muon


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks of a `Pretrainer`, AdamW for all others."""
    blocks = [model.get_submodule(name) for name in ("backbone.encoder", "decoder")]
    hidden = [p for part in blocks for p in part.parameters() if p.ndim == 2]
    is_hidden = {id(parameter) for parameter in hidden}
    others = [
        group | {"params": [p for p in group["params"] if id(p) not in is_hidden]}
        for group in parameter_groups(model, recipe)
    ]
    muon = torch.optim.Muon(hidden, recipe.lr, recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, ADAMW_RATE * recipe.lr, betas=recipe.betas, fused=True)]


class Schedules:
    """The courses of the learning rates of some optimizers, as one."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], recipe: Recipe, steps: int):
        self.schedules: list[LRScheduler] = [
            build_scheduler(optimizer, recipe, steps) for optimizer in optimizers
        ]

    def step(self) -> None:
        """Go on to the rates of the next step."""
        for schedule in self.schedules:
            schedule.step()

    def stateful_parts(self) -> dict:
        """What belongs in a checkpoint, by name."""
        return {f"schedule_{i}": schedule for i, schedule in enumerate(self.schedules)}
