"""The task of the pretraining: what the heads of the network say, and what it costs.

- Each patch says what lies on it, how high, and what it is a part of.
- The class token says what the whole image holds.
- The class token says what its patches have become: their mean and their spread, after
  the last layer. A label for each patch teaches patches more than one label for an image
  teaches a class token. This way the class token learns it from them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.drawings.painting import ROLES
from going_modular.drawings.synthetic_food import NAMES
from going_modular.model_builder import ViT
from going_modular.pretraining.views import Views, pick
from going_modular.vit.backbones import statistics_of

# What each loss counts for. They were not searched for one by one.
WEIGHTS = {"contents": 3.0, "heights": 1.0, "roles": 1.0, "whole": 2.0, "summary": 2.0}


class Pretrainer(nn.Module):
    """A ViT with heads for everything that it has to say during pretraining.

    Only the patches that are kept go through the encoder, as in He et al., *Masked
    Autoencoders* (arXiv 2111.06377). A quarter of the patches costs about a quarter of
    the time, so the network can see many more images.
    """

    def __init__(self, vit: ViT):
        super().__init__()
        D = vit.config.embedding_dim
        self.backbone = vit
        self.contents = nn.Linear(D, len(NAMES))
        self.heights = nn.Linear(D, 1)
        self.roles = nn.Linear(D, len(ROLES))
        self.whole = nn.Linear(D, len(NAMES))
        self.summary = nn.Linear(D, 2 * D)

    def forward(self, images: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Tokens after the last LayerNorm, the class token first.

        Shapes: images (B, 3, H, W), kept (B, n) -> (B, n+1, D).
        """
        vit = self.backbone
        patches = pick(vit.patch_embedding(images) + vit.pos_embedding[:, 1:], kept)
        first = (vit.class_token + vit.pos_embedding[:, :1]).expand(images.shape[0], -1, -1)
        return vit.norm(vit.encoder(torch.cat([first, patches], dim=1)))

    def losses(self, views: Views) -> dict[str, torch.Tensor]:
        """The losses by name, each without its weight.

        Shares cost their Kullback-Leibler divergence from the truth, which is zero where
        both are equal.
        """
        tokens = self(views.images, views.kept)
        first, patches = tokens[:, 0], tokens[:, 1:]
        heights = self.heights(patches).squeeze(2).float()
        return {
            "contents": divergence(self.contents(patches), views.contents),
            "heights": F.smooth_l1_loss(heights, views.heights),
            "roles": divergence(self.roles(patches), views.roles),
            "whole": divergence(self.whole(first), views.whole),
            "summary": F.mse_loss(self.summary(first).float(), summary_of(patches)),
        }


def divergence(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The mean divergence of softmax(scores) from shares, (..., K) both."""
    log_shares = scores.float().log_softmax(dim=-1).flatten(0, -2)
    return F.kl_div(log_shares, truth.flatten(0, -2), reduction="batchmean")


@torch.no_grad()
def summary_of(patches: torch.Tensor) -> torch.Tensor:
    """The mean and spread of an image's patches, standardized over the batch.

    No gradient goes through it: the patches must not become what is easy to summarize.

    Shapes: (B, n, D) -> (B, 2D).
    """
    statistics = statistics_of(patches.float())
    return (statistics - statistics.mean(dim=0)) / (statistics.std(dim=0) + 1e-3)


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weighted sum of the losses."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
