"""Two layout quirks of the released LAQ, which its checkpoints need and models trained here do without.

In two places the released code reshapes memory whose axes lie in another order than it then assumes. No weight shows
it, and training makes the best of it; but a released checkpoint gives its own codes and pixels only if the same
numbers meet. `LAQConfig.released_layout` switches both on.

    MixedPEG     the position convolution of the temporal transformer runs over a shuffled video: it needs this for
                 the codes
    mixed_codes  every code token that the decoder sees is made of coordinates of all codes: it needs this for the
                 pixels (nothing to mix with one code)
"""

from __future__ import annotations

import torch
from einops import rearrange

from lapa.models.transformer import PEG


class MixedPEG(PEG):
    """PEG over time as released: tokens stored patch by patch, (h, w, t), are taken for frame by frame, (t, h, w).

    So the "first frame" that the convolution sees is the upper half of both frames, their tokens in turn.
    """

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """[B, T, h, w, d] -> same shape."""
        b, t, h, w, d = video.shape
        shuffled = rearrange(video, "b t h w d -> b h w t d").reshape(b, t, h, w, d)
        return rearrange(super().forward(shuffled).reshape(b, h, w, t, d), "b h w t d -> b t h w d")


def mixed_codes(embedding: torch.Tensor) -> torch.Tensor:
    """Codes [B, s, d] as the released decoder takes them: stored code by code, read as if coordinate by coordinate.

    -> [B, s, d], token j of which holds numbers j, j + s, j + 2s, ... of the s * d.
    """
    b, s, d = embedding.shape
    return embedding.reshape(b, d, s).transpose(1, 2)
