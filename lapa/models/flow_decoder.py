"""A decoder of coarse optical flow, beside that of pictures: from the first frame and the codes, what moves where.

    each cell of what the frozen encoder sees in x_t, its place, and the codes --small network--> the cell's flow

Pictures blur where little video teaches how things look; the flow of a cell is two numbers. So it shows what a code
means for a frame, also for one of another robot (experiments/transplant.py). Trained apart from LAQ, in seconds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lapa.contracts import Array
from lapa.measures.flow import COLUMNS, ROWS
from lapa.models.eyes import places_of

WIDTH = 64
SCALE = 50.0  # a flow is some fiftieths of the picture's side
STILL = 0.2  # how much a cell that does not move counts in the loss, beside 1 for a flow of 1 / SCALE
STEPS, BATCH, RATE = 600, 64, 2e-3


class FlowDecoder(nn.Module):
    """Cells float [B, channels, rows, columns] and codes int64 [B, s] -> flow float32 [B, 2, ROWS, COLUMNS], in sides
    of the picture."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, channels: int, positions: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.see = nn.Linear(channels + 2, WIDTH)
        self.codes = nn.ModuleList(nn.Embedding(size, WIDTH) for _ in range(positions))
        self.hidden, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, cells: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        rows, columns = cells.shape[2:]
        seen = (cells.float().flatten(2).mT - self.mean) / self.deviation  # [B, cells, channels]
        place = places_of(rows, columns).to(seen).expand(len(seen), -1, -1)
        h = F.gelu(self.see(torch.cat([seen, place], 2)))
        code = sum(table(codes[:, i]) for i, table in enumerate(self.codes))[:, None]
        h = h + F.gelu(self.hidden(h * (1 + code) + code))
        flow = self.out(h * (1 + code)).mT.unflatten(2, (rows, columns))
        return F.interpolate(flow, (ROWS, COLUMNS), mode="bilinear") / SCALE

    def fit(self, cells: torch.Tensor, codes: Array, flow: Array, seed: int) -> None:
        """Learn N examples: cells float [N, channels, rows, columns], codes int64 [N, s], flow float [N, 2, ROWS,
        COLUMNS]. Cells count by how fast they move."""
        torch.manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.reset_parameters()
        self.mean.copy_(cells.float().mean((0, 2, 3)))
        self.deviation.copy_(cells.float().std((0, 2, 3)).clamp_min(1e-4))
        told, given = torch.from_numpy(flow).float() * SCALE, torch.from_numpy(codes)
        optimizer = torch.optim.AdamW(self.parameters(), RATE)
        random = torch.Generator().manual_seed(seed)
        for _ in range(STEPS):
            some = torch.randint(len(told), (BATCH,), generator=random)
            made = self(cells[some], given[some]) * SCALE
            weight = STILL + told[some].norm(dim=1, keepdim=True)
            loss = (weight * F.smooth_l1_loss(made, told[some], reduction="none")).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.eval().requires_grad_(False)
