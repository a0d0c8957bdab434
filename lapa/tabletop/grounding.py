"""Stage 0, `lapa ground`: give the tiny backbone what the paper's VLM brings along: knowing words and finding things.

Static Tabletop scenes in all three domains (or in some, `--domains`), every object and every phrase, no motion and no
action: the readout must tell where the block is that the sentence moves, where the block or place is that it refers to,
where the robot is, and which relation the sentence names. The weights ship with lapa; this rebuilds them, or makes a
backbone of another size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.artefacts.folder import provenance, save_artefact
from lapa.backbones import tiny
from lapa.contracts import Array, Logs
from lapa.runtime.distributed import on_first_rank
from lapa.tabletop import language as lang
from lapa.tabletop import world
from lapa.tabletop.render import DOMAINS, render
from lapa.training.loop import Optimisation, Sampler, fit

CELLS = 32  # an answer is a distribution over 32 cells per axis
ANSWERS = ("a", "reference", "effector", "destination", "effector_to_a", "a_to_reference", "a_to_destination")
RELATIONS = [(family, way) for family in lang.FAMILIES for way in ("", *lang.DIRECTIONS)]


class Grounding(nn.Module):
    """The backbone with a head that answers: four points, three ways between them, a relation, what each token shows.

    All of it can be read off one still picture and the sentence. What to do about it, such as which way the effector
    should go, is not asked: that is a policy's business (docs/experiments.md says where the line is).
    """

    def __init__(self, backbone: tiny.TinyVLM) -> None:
        super().__init__()
        self.backbone = backbone
        self.answers = nn.Linear(backbone.width, len(ANSWERS) * 2 * CELLS)
        self.relation = nn.Linear(backbone.width, len(RELATIONS))
        self.content = nn.Linear(backbone.config.vision_width, len(lang.OBJECTS) + 2)

    def loss(self, batch: tuple[Tensor, list[str], Tensor, Tensor, Tensor]) -> tuple[Tensor, Logs]:
        """images float [B, 3, H, W], texts, points float [B, 4, 2] on the board, relation int64 [B],
        content int64 [B, grid * grid]: what each token of the image shows."""
        images, texts, *answers = batch
        where = self.relation.weight.device
        points, relation, content = (answer.to(where) for answer in answers)
        tokens = self.backbone.vision(images.to(where))
        words = tiny.tokenize(texts, self.backbone.config.words, self.backbone.config.vocabulary)
        hidden = self.backbone.read(tokens, words.to(where))
        ways = points[:, [0, 1, 3]] - points[:, [2, 0, 0]]
        places = torch.cat([points, (ways.sign() * ways.abs().sqrt() + 1) / 2], 1)  # the shorter, the more exactly
        logits = self.answers(hidden).view(-1, len(ANSWERS), 2, CELLS).float()
        located = F.cross_entropy(logits.flatten(0, 2), _shares(places).flatten(0, 2))
        named = F.cross_entropy(self.relation(hidden).float(), relation)
        shown = F.cross_entropy(self.content(tokens).flatten(0, 1).float(), content.flatten())
        return located + 0.2 * named + shown, {
            **_errors(logits.detach(), points, ways),
            "content_loss": float(shown.detach()),
            "relation_loss": float(named.detach()),
        }


def _centres(where: torch.device) -> Tensor:
    return (torch.arange(CELLS, device=where) + 0.5) / CELLS


def _shares(places: Tensor) -> Tensor:
    """[...] -> [..., CELLS]: a place between two centres belongs to both, by its distance from each, so that the mean
    of the answer is the place itself and not that of its cell. Places beyond [0, 1] are at its ends."""
    inside = places.clamp(0.5 / CELLS, 1 - 0.5 / CELLS)
    return (1 - (inside[..., None] - _centres(places.device)).abs() * CELLS).clamp(0.0)


def _errors(logits: Tensor, points: Tensor, ways: Tensor) -> Logs:
    """Mean distance of the answers from the truth, in board units."""
    found = logits.softmax(-1) @ _centres(logits.device)
    scaled = 2 * found[:, 4:] - 1
    distance = (torch.cat([found[:, :4], scaled * scaled.abs()], 1) - torch.cat([points, ways], 1)).norm(dim=-1)
    return {f"error_{name}": value for name, value in zip(ANSWERS, distance.mean(0).tolist(), strict=True)}


def scenes(
    rng: np.random.Generator, count: int, size: int, domains: Sequence[str] = tuple(DOMAINS)
) -> tuple[Array, list[str], Array, Array, Array]:
    """Random static scenes of one of the domains, drawn at random, with a sentence about each.

    -> images uint8 [count, size, size, 3], texts, points float32 [count, 4, 2] (A, what the sentence refers to, the
    effector, and where the sentence would have A be), relation int64 [count], content int64 [count, (size / 4)^2].
    """
    kinds = np.argsort(rng.random((count, len(lang.OBJECTS))), axis=1)[:, : world.BLOCKS]
    blocks = rng.uniform(0.08, 0.92, (count, world.BLOCKS, 2))
    anywhere, near = rng.uniform(0.02, 0.98, (count, 2)), blocks[:, 0] + rng.normal(scale=0.12, size=(count, 2))
    effector = np.where(rng.random((count, 1)) < 0.5, anywhere, near.clip(0.02, 0.98))
    state = world.Scenes(kinds, blocks, effector, rng.integers(2**31, size=count))
    for _ in range(4):  # contacts push overlapping blocks apart
        state = world.step(state, np.zeros((count, 2)))
    texts, points, relation = [], np.zeros((count, 4, 2), np.float32), np.zeros(count, np.int64)
    points[:, 2] = state.effector
    for i in range(count):
        family = lang.FAMILIES[rng.integers(len(lang.FAMILIES))]
        place = list(lang.PLACES)[rng.integers(len(lang.PLACES))] if family == "block2absolute" else ""
        ways = lang.SIDES if family == "block2side" else tuple(lang.DIRECTIONS)
        way = ways[rng.integers(len(ways))] if family in ("block2side", "block2relative") else ""
        split = ("seen", "unseen")[rng.integers(2)]
        a, b = (lang.OBJECTS[kinds[i, j]] for j in (0, 1))
        texts.append(lang.say(rng, split, family, a=a, b=b, place=place, direction=way))
        points[i, 0] = state.blocks[i, 0]
        uses_b = family in ("block2block", "block2side", "separate")
        points[i, 1] = state.blocks[i, 1] if uses_b else lang.PLACES[place] if place else state.blocks[i, 0]
        points[i, 3] = _destination(family, points[i, 0], points[i, 1], np.array(lang.DIRECTIONS.get(way, (0.0, 0.0))))
        relation[i] = RELATIONS.index((family, way))
    domain = domains[int(rng.integers(len(domains)))]
    images = render(state, domain, size, tick=int(rng.integers(900)))
    return images, texts, points, relation, _content(state, size // 4)


def _destination(family: str, a: Array, reference: Array, direction: Array) -> Array:
    """Where the sentence would have A be, float [2] on the board."""
    if family == "separate":
        return reference + world.FAR * world.unit(a - reference)
    return reference + direction * {"block2side": world.SIDE_OFFSET, "block2relative": world.MOVE}.get(family, 0.0)


def _content(state: world.Scenes, grid: int) -> Array:
    """What stands at each cell: an object, the effector (one past the objects) or nothing; int64 [N, grid * grid]."""
    axis = (np.arange(grid) + 0.5) / grid
    cells = np.stack(np.meshgrid(axis, axis), -1).reshape(1, -1, 1, 2)
    things = np.concatenate([state.blocks, state.effector[:, None]], 1)[:, None]
    kinds = np.concatenate([state.kinds, np.full((len(state), 1), len(lang.OBJECTS))], 1)
    distance = world.length(cells - things)
    nearest = distance.argmin(-1)
    found = np.take_along_axis(kinds, nearest, 1)
    return np.where(distance.min(-1) < 0.06, found, len(lang.OBJECTS) + 1)


def ground(
    out: Path, how: Optimisation, seed: int, config: tiny.Config | None = None, domains: Sequence[str] = tuple(DOMAINS)
) -> Logs:
    """Train a backbone from random weights on scenes of these domains; write it to `out` as a "backbone" artefact."""
    config = replace(config or tiny.Config(), grounded=False, weights="")
    torch.manual_seed(seed)
    model = Grounding(config.build())

    def draw(rng: np.random.Generator) -> Array:  # a scene is random through and through: the rows are the scenes
        drawn = scenes(rng, how.batch_size, config.image_size, domains)
        return np.fromiter(zip(*drawn, strict=True), dtype=object, count=how.batch_size)

    def load(rows: Array) -> tuple[Tensor, list[str], Tensor, Tensor, Tensor]:
        images, texts, *answers = zip(*rows, strict=True)
        floats = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        return floats, list(texts), *(torch.from_numpy(np.stack(a)) for a in answers)  # type: ignore[return-value]

    logs = fit(model, Sampler(draw, load), how, out, seed=seed, title="grounding")
    made = {
        "model": asdict(config),
        "recipe": asdict(how),
        "domains": list(domains),
        "results": logs,
        "provenance": provenance(seed, {}, {}),
    }
    on_first_rank(lambda: save_artefact(out, "backbone", made, model.backbone.state_dict()))
    return logs
