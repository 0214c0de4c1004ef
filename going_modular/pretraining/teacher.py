"""The task of the pretraining: what the heads of the network say, and what it costs.

- Each patch says what lies on it, how high, and what it is a part of.
- The class token says what the whole image holds.
- The class token of the backbone says what its patches have become, on the dish and
  everywhere: their mean and their spread, after the backbone's last layer. A label for
  each patch teaches patches more than one label for an image teaches a class token. This
  way the class token learns it from them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.drawings.painting import ROLES
from going_modular.drawings.synthetic_food import NAMES
from going_modular.model_builder import ViT
from going_modular.pretraining.views import Views, pick

# What each loss counts for. They were not searched for one by one.
WEIGHTS = {"contents": 3.0, "heights": 1.0, "roles": 1.0, "whole": 2.0, "summary": 2.0}
DECODER_LAYERS = 3
ON_THE_DISH = ROLES.index("dish")
EVERYWHERE = 0.02  # added to each patch's share of the dish, for crops that show no dish


class Pretrainer(nn.Module):
    """A ViT, with a decoder and heads for everything that it has to say during pretraining.

    Only the patches that are kept go through the encoder, as in He et al., *Masked
    Autoencoders* (arXiv 2111.06377). A quarter of the patches costs about a quarter of
    the time, so the network can see many more images.

    The layers next to the heads get better at their task and worse at everything else
    (Bordes et al., *Guillotine Regularization*, arXiv 2206.13378). So the heads read from
    more layers of the same kind, the decoder, which is cut off after the pretraining.
    """

    def __init__(self, vit: ViT):
        super().__init__()
        D = vit.config.embedding_dim
        self.backbone = vit
        self.decoder = nn.Sequential(*(vit.build_block(0) for _ in range(DECODER_LAYERS)))
        self.norm = nn.LayerNorm(D, eps=vit.config.layer_norm_eps)
        self.contents = nn.Linear(D, len(NAMES))
        self.heights = nn.Linear(D, 1)
        self.roles = nn.Linear(D, len(ROLES))
        self.whole = nn.Linear(D, len(NAMES))
        self.summary = nn.Linear(D, 4 * D)

    def forward(
        self, images: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the backbone and of the decoder, each after its last LayerNorm.

        The class token is the first.

        Shapes: images (B, 3, H, W), kept (B, n) -> (B, n+1, D) and (B, n+1, D).
        """
        vit = self.backbone
        patches = pick(vit.patch_embedding(images) + vit.pos_embedding[:, 1:], kept)
        first = (vit.class_token + vit.pos_embedding[:, :1]).expand(images.shape[0], -1, -1)
        z = vit.encoder(torch.cat([first, patches], dim=1))
        return vit.norm(z), self.norm(self.decoder(z))

    def losses(self, views: Views) -> dict[str, torch.Tensor]:
        """The losses by name, each without its weight.

        Shares cost their Kullback-Leibler divergence from the truth, which is zero where
        both are equal.
        """
        tokens, decoded = self(views.images, views.kept)
        first, patches = decoded[:, 0], decoded[:, 1:]
        heights = self.heights(patches).squeeze(2).float()
        summary = summary_of(tokens[:, 1:], views.roles[..., ON_THE_DISH])
        return {
            "contents": divergence(self.contents(patches), views.contents),
            "heights": F.smooth_l1_loss(heights, views.heights),
            "roles": divergence(self.roles(patches), views.roles),
            "whole": divergence(self.whole(first), views.whole),
            "summary": F.mse_loss(self.summary(tokens[:, 0]).float(), summary),
        }


def divergence(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The mean divergence of softmax(scores) from shares, (..., K) both."""
    log_shares = scores.float().log_softmax(dim=-1).flatten(0, -2)
    return F.kl_div(log_shares, truth.flatten(0, -2), reduction="batchmean")


@torch.no_grad()
def summary_of(patches: torch.Tensor, dish: torch.Tensor) -> torch.Tensor:
    """The mean and spread of an image's patches, everywhere and on the dish.

    They are standardized over the batch. No gradient goes through them: the patches must
    not become what is easy to summarize.

    Shapes: patches (B, n, D), dish (B, n), the share of each patch that belongs to it
    -> (B, 4D).
    """
    weights = torch.stack([torch.ones_like(dish), dish + EVERYWHERE], dim=1)
    summary = weighted_statistics(patches.float(), weights).flatten(1)
    return (summary - summary.mean(dim=0)) / (summary.std(dim=0) + 1e-3)


def weighted_statistics(patches: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Means and standard deviations over the patches: (B, n, D), (B, k, n) -> (B, k, 2D)."""
    weights = (weights / weights.sum(dim=2, keepdim=True)).unsqueeze(3)  # (B, k, n, 1)
    patches = patches.unsqueeze(1)  # (B, 1, n, D)
    # A product of matrices would be rounded to 16 bits under autocast
    mean = (weights * patches).sum(dim=2, keepdim=True)
    variance = (weights * (patches - mean).square()).sum(dim=2)
    return torch.cat([mean.squeeze(2), variance.sqrt()], dim=2)


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weighted sum of the losses."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
