"""What a ViT leaves out at random in training: numbers, or a whole part for an image."""

import numpy as np
import torch
from torch import nn

VALUES = 2**16  # that 16 random bits can have


class Dropout(nn.Dropout):
    """`nn.Dropout` in all but its random numbers, of which it draws fewer on a CPU.

    In training, each number becomes 0 with probability p, independently of the others. What
    stays is divided by 1 - p. `nn.Dropout` draws a random number for each, and in a ViT this
    takes a tenth of a training step or more. 16 random bits are enough: they give p to within
    1e-5. So we draw 64 for four numbers, with NumPy's quickest generator. Its seed comes
    from PyTorch's generator, so the seed of a training decides all of its masks, and a
    checkpoint continues them.

    A GPU draws quickly, for p near 0 or 1 16 bits are too coarse, and torch.compile has
    random numbers of its own: there, it is `nn.Dropout` itself.

    Shapes: any -> the same.

    Source: Srivastava et al., JMLR 15 (2014); where a ViT has it: Appendix B.1 of the paper.
    """

    def __init__(self, p: float = 0.5):  # without `inplace`
        super().__init__(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = x.device.type != "cpu" or not 0.001 <= self.p <= 0.999
        if not self.training or plain or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = round(self.p * VALUES)  # so many of all values
        keep = random_16_bits(x.numel()).ge_(dropped - VALUES // 2)  # 1 or 0
        return x * keep.view(x.shape).to(x.dtype).mul_(VALUES / (VALUES - dropped))


class StochasticDepth(nn.Module):
    """Skip the part before it for some of the images, each with probability p.

    In training, all numbers of an image become 0 with probability p, so that of "part of z,
    plus z" only z is left. What stays is divided by 1 - p.

    Shapes: (B, ...) -> the same.

    Source: Huang et al., arXiv 1603.09382. torchvision has the same under this name, and
    draws the same numbers. But to import it takes as long as to import PyTorch.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        stays = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        stays.bernoulli_(1 - self.p)
        return x * (stays / (1 - self.p) if self.p < 1 else stays)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def random_16_bits(count: int) -> torch.Tensor:
    """Random integers (count,) from -2¹⁵ to 2¹⁵ - 1, all equally likely."""
    seed = int(torch.randint(2**62, (), device="cpu"))
    numbers = np.random.SFC64(seed).random_raw(-(-count // 4))  # of 64 bits each
    return torch.from_numpy(numbers.view(np.int16)[:count])
