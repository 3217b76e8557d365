"""TokenVLA: a small vision-language-action policy that predicts all action tokens in one pass.

The recipe is OpenVLA-OFT's with discrete tokens, as WMPO uses it: a chunk of 8 actions of 7 numbers
is 56 tokens of 256 bins, decided in parallel, each with its own softmax.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from policies.base import Act
from wm_gym.hub import Pretrained


@dataclass(frozen=True, slots=True)
class TokenVLAConfig:
    """Shape of a TokenVLA; the defaults are those of the bundled ones (1.8M weights)."""

    image_size: int = 64
    chunk: int = 8
    """Control steps decided at once."""
    action_dim: int = 7
    bins: int = 256
    """Uniform bins over [-1, 1]; an action is the centre of its bin."""
    stem_width: int = 64
    """Channels of the convolutions, at a quarter of the picture's resolution."""
    stem_depth: int = 2
    """Residual blocks of the convolutional stem."""
    keypoints: int = 32
    """Places in the picture that are told as coordinates, beside the picture's own tokens."""
    width: int = 160
    depth: int = 4
    heads: int = 4
    vocabulary: int = 1024
    """Hash buckets of words and pairs of words."""
    temperature: float = 1.0
    """Logits are divided by it wherever a probability is used (the paper's RL: 1.6)."""


class TokenVLA(nn.Module, Pretrained):
    """Picture (H, W, 3) uint8 and instruction in, a chunk of k actions of 7 numbers out.

    Every token has a categorical distribution over `bins`: softmax(logits / temperature), float32.
    A logit is a free number plus a parabola over the bins whose middle and width are predicted too:
    bins are ordered, and a few dozen demonstrations cannot teach that to 256 separate classes.
    The same temperature holds in `act` and `log_prob`, so the two always agree. Events are tokens:
    event e belongs to control step e // 7 of the chunk.
    """

    config_class = TokenVLAConfig
    asset = "policy"
    interface = """\
Inputs: `obs["image"]`, uint8 (n, H, W, 3) of `config.image_size` pixels, and n instructions.
Output of `act`: `config.chunk` actions in [-1, 1] per row, float32 (n, k, 7): OSC_POSE deltas
and the gripper. It sees one picture at a time and no proprioception."""

    def __init__(self, config: TokenVLAConfig) -> None:
        super().__init__()
        if config.image_size % 8:
            raise ValueError(f"image_size must be a multiple of 8, got {config.image_size}.")
        self.config = config
        self.chunk = config.chunk
        events = config.chunk * config.action_dim
        self.register_buffer(
            "event_steps", torch.arange(events) // config.action_dim, persistent=False
        )
        self.stem = Stem(config)
        self.words = nn.EmbeddingBag(config.vocabulary, config.width, mode="mean")
        self.queries = nn.Parameter(torch.randn(config.chunk, config.width) * 0.5)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.action_dim * config.bins)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.bell = nn.Linear(config.width, config.action_dim * 2)
        self.aim = nn.Linear(config.width, events)
        centres = (torch.arange(config.bins) + 0.5) * (2 / config.bins) - 1
        self.register_buffer("centres", centres, persistent=False)

    @property
    def temperature(self) -> float:
        """Of `act` and `log_prob`; it may be set, and is saved with the weights."""
        return self.config.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.config = replace(self.config, temperature=value)

    def logits(self, obs: Mapping[str, Any], instructions: Sequence[str]) -> Tensor:
        """Logits before the temperature, (n, events, bins) float32."""
        image = torch.as_tensor(obs["image"]).to(self.queries.device, non_blocking=True)
        size, n = self.config.image_size, len(image)
        if (
            image.shape != (n, size, size, 3)
            or image.dtype != torch.uint8
            or n != len(instructions)
        ):
            raise ValueError(
                f"Expected obs['image'] uint8 ({n}, {size}, {size}, 3) and {n} instructions, got "
                f"{image.dtype} {tuple(image.shape)} and {len(instructions)}; a policy sees "
                "pictures of the size it was made for (TokenVLAConfig.image_size)."
            )
        seen, places = self.stem(image)  # (n, tokens, width), (n, width)
        told = self._read(instructions).to(seen.dtype)  # (n, 1, width)
        queries = self.queries.to(seen.dtype) + places[:, None]  # (n, chunk, width)
        x = torch.cat([seen, told, queries], dim=1)
        for block in self.blocks[:-1]:
            x = block(x, x)
        x = self.blocks[-1](x[:, -self.chunk :], x)  # only the queries are read from the last block
        x = self.norm(x)
        free = self.head(x).float().view(n, -1, self.config.bins)
        middle, width = self.bell(x).float().view(n, -1, 2).chunk(2, -1)  # (n, events, 1)
        middle = middle + self.aim(places).float().unsqueeze(-1)  # straight from the keypoints
        return free - 0.5 * ((self.centres - middle) / (0.02 + F.softplus(width - 1))).square()

    def act(
        self,
        obs: Mapping[str, Any],
        instructions: Sequence[str],
        *,
        greedy: bool = False,
        generator: Generator | None = None,
    ) -> Act:
        """Sample every token, or take the likeliest (`greedy`); `sample` is (n, events) bins."""
        log_p = self._log_softmax(self.logits(obs, instructions))  # (n, events, bins)
        if greedy:
            token = log_p.argmax(-1)
        else:  # by the inverse of the cumulative distribution: one uniform number a token
            u = torch.rand(log_p.shape[:-1], generator=generator, device=log_p.device)
            below = log_p.exp().cumsum(-1)  # its last is not exactly 1: rounding must draw no bin
            token = (below <= u.unsqueeze(-1) * below[..., -1:]).sum(-1)
        return Act(self.detokenize(token), token, _pick(log_p, token))

    def log_prob(
        self, obs: Mapping[str, Any], instructions: Sequence[str], sample: Tensor
    ) -> Tensor:
        """Log-probability of every token of `sample`, (n, events) float32."""
        return _pick(self._log_softmax(self.logits(obs, instructions)), sample)

    def tokenize(self, action: Tensor) -> Tensor:
        """Bins of actions: (n, k, 7) in [-1, 1] -> (n, events) int64."""
        bins = self.config.bins
        return ((action.flatten(1) + 1) * (bins / 2)).long().clamp(0, bins - 1)

    def detokenize(self, token: Tensor) -> Tensor:
        """Centres of bins: (n, events) -> (n, k, 7) float32 in (-1, 1)."""
        return self.centres[token].view(-1, self.chunk, self.config.action_dim)

    def _log_softmax(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits.float() / self.temperature, dim=-1)

    def _read(self, instructions: Sequence[str]) -> Tensor:
        unique = sorted(set(instructions))
        bags = [hash_words(text, self.config.vocabulary) for text in unique]
        device = self.queries.device
        offsets = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0).to(device)
        told = self.words(torch.tensor([i for bag in bags for i in bag], device=device), offsets)
        place = {text: i for i, text in enumerate(unique)}
        rows = torch.tensor([place[text] for text in instructions], device=device)
        return told[rows].unsqueeze(1)  # (n, 1, width)


class Stem(nn.Module):
    """uint8 pictures to (n, (H/8)(W/8), width) tokens, convolved at H/2 and H/4 on the way.

    Grasping needs an error under two pixels, so positions are kept fine until the last 2x2 merge,
    which stacks neighbours and loses nothing. Beside the tokens come keypoints: expected positions
    under softmax maps (Finn et al. 2016), from which "where is the cube from the hand" is linear.
    """

    def __init__(self, config: TokenVLAConfig) -> None:
        super().__init__()
        wide = config.stem_width
        self.first = nn.Conv2d(12 + 2, wide // 2, 3, padding=1)  # on 2x2 patches and coordinates
        self.down = nn.Conv2d(wide // 2, wide, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Residual(wide) for _ in range(config.stem_depth))
        self.merge = nn.Linear(4 * wide, config.width)
        self.maps = nn.Conv2d(wide, config.keypoints, 1)
        self.locate = nn.Sequential(
            nn.Linear(2 * config.keypoints, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )
        side = config.image_size // 8
        self.position = nn.Parameter(torch.randn(side * side, config.width) * 0.5)
        line = torch.linspace(-1, 1, config.image_size // 2)
        self.register_buffer(
            "grid", torch.stack(torch.meshgrid(line, line, indexing="ij")), persistent=False
        )
        # PyTorch's own initialisation halves the signal at every layer, until a token hardly
        # depends on the picture.
        for layer in (self.first, self.down, *(block.first for block in self.blocks)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_normal_(self.merge.weight, nonlinearity="linear")
        # Sharp from the start: the mean position under a flat map is the centre, wherever the cube.
        nn.init.normal_(self.maps.weight, std=1.0)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image uint8 (n, H, W, 3) -> tokens (n, (H/8)(W/8), width), keypoints (n, width)."""
        x = F.pixel_unshuffle(image.permute(0, 3, 1, 2).float() / 127.5 - 1, 2)  # (n, 12, H/2, W/2)
        x = torch.cat([x, self.grid.expand(len(x), -1, -1, -1)], dim=1)
        x = F.relu(self.first(x.contiguous(memory_format=torch.channels_last)))
        x = F.relu(self.down(x))  # (n, c, H/4, W/4)
        for block in self.blocks:
            x = block(x)
        places = self.locate(self._keypoints(x))  # (n, width)
        x = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)  # (n, tokens, 4c)
        return self.merge(x) + self.position, places

    def _keypoints(self, x: Tensor) -> Tensor:
        """Expected (y, x) of every map, in [-1, 1]: (n, c, h, w) -> (n, 2 * keypoints) float32."""
        share = self.maps(x).float().flatten(2).softmax(-1)  # (n, keypoints, h * w)
        grid = F.avg_pool2d(self.grid[None], 2)[0].flatten(1)  # (2, h * w)
        return (share @ grid.T).flatten(1)


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity, which it is at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to the same shape."""
        return x + self.second(F.relu(self.first(F.relu(x))))


class Block(nn.Module):
    """Pre-norm transformer block in which `x` attends to `context`: itself, or more than that."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map x (n, q, width), given context (n, t, width), to (n, q, width)."""
        c = self.norm_attention(context)
        q = self.query(c if x is context else self.norm_attention(x))
        k, v = self.key_value(c).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        # 73 tokens: written out, this is 4 times faster on a CPU than the fused kernel's backward.
        weight = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)  # (n, heads, q, t)
        x = x + self.out((weight.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


def hash_words(text: str, vocabulary: int) -> list[int]:
    """Hash words and pairs of words to buckets, the same on every machine; any text will do."""
    words = ["<s>", *text.lower().split()]
    pairs = [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]
    return [zlib.crc32(piece.encode()) % vocabulary for piece in words + pairs]


def _pick(log_p: Tensor, token: Tensor) -> Tensor:
    return log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1)
