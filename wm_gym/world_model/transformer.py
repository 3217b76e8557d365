"""The world model for large pictures: a causal video transformer in an autoencoder's latents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from wm_gym.checks import check_block, check_count
from wm_gym.hub import Pretrained
from wm_gym.world_model.blocks import PARTS, Layer, Past, adapt, turns
from wm_gym.world_model.flow import sample
from wm_gym.world_model.model import pixels, to_frames

FREQUENCIES = 256  # numbers that a noise level is told in
AT_ONCE = 64  # pictures in one call of the autoencoder, whose maps are large


@dataclass(frozen=True, slots=True)
class VideoTransformerConfig:
    """Shape of a video transformer; the defaults are `paper` (WMPO 4.1: STDiT3-XL/2)."""

    image_size: int = 256
    memory: int = 4
    """Recent frames that are remembered, beside the first (WMPO 4.1: 4, without it)."""
    anchor: bool = True
    """Whether the first frame stays in sight (WMPO: it does not)."""
    max_chunk: int = 8
    """Most actions in one call (WMPO 4.1: 8)."""
    action_dim: int = 7
    patch: int = 2
    """Places of the latent along an edge of a token."""
    depth: int = 28
    """Layers, of a spatial and a temporal block each."""
    width: int = 1152
    heads: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Of the autoencoder, which halves the picture between them; the defaults are SDXL's."""
    layers_per_block: int = 2
    latent_channels: int = 4
    scaling_factor: float = 0.13025
    """Brings latents to unit variance."""
    memory_noise: float = 0.05
    """Noise on remembered latents in training; in play the model is told as much (WMPO: 0.05)."""
    sampling_steps: int = 2
    """Network calls that a block of frames takes."""

    @property
    def side(self) -> int:
        """Places along an edge of a frame's latent."""
        return self.image_size >> len(self.block_out_channels) - 1

    @property
    def channels(self) -> int:
        """Channels of a frame's latent."""
        return self.latent_channels

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return (self.side // self.patch) ** 2

    @property
    def latent_size(self) -> int:
        """Numbers in a frame's latent: (latent_channels, side, side), flat."""
        return self.latent_channels * self.side**2


class VideoMemory(NamedTuple):
    """What is remembered of n rows; a row of it is all it takes to imagine on."""

    anchor: Tensor  # (n, f) float32: the latent of the episode's first frame
    recent: Tensor  # (n, m, f) float32: of the last frames, repeating the first where fewer

    def take(self, rows: Tensor) -> VideoMemory:
        """Return rows (r,) int64 as a memory of its own, fresh."""
        return VideoMemory(*(part.index_select(0, rows) for part in self))

    def put(self, rows: Tensor, other: VideoMemory) -> None:
        """Overwrite rows (r,) int64 with those of `other`, in place."""
        for part, new in zip(self, other, strict=True):
            part.index_copy_(0, rows, new)


class Remembered(NamedTuple):
    """Known frames as the network has seen them."""

    last: Tensor  # (n, 1, f): the latent of the last
    pasts: list[Past]  # one a layer


class VideoTransformer(nn.Module, Pretrained):
    """Imagines K frames from the first and the last ones and K actions (WMPO, section 3.2).

    As the paper's: an image autoencoder, spatial and causal temporal attention, actions that enter
    frame by frame by adaptive normalisation, rectified flow. Beyond it: the first frame stays in
    sight, attention along time sees the actions too, a frame is also told the sum of the actions
    since the last known one, known frames pass the network once a block, and the network predicts
    clean latents as a change of the last known frame's.

    The autoencoder is frozen while the rest learns (`flow_loss`), so it comes trained: by
    `train_autoencoder`, or with the default shape it is SDXL's,
    `model.autoencoder.load_state_dict(published.state_dict())`.
    """

    config_class = VideoTransformerConfig
    asset = "world_model"
    interface = """\
`begin` takes pictures, uint8 (n, t, H, W, 3); `imagine` takes up to `config.max_chunk` actions
in [-1, 1], float32 (n, k, 7), and noise, and returns one latent per action; `decode` draws
latents as pictures, uint8. No measurements are needed. `gym.make_vec("wm_gym/Lift-v0",
num_envs=16, world_model=..., success=...)` does all of this, with the success classifier that
was trained with it."""

    def __init__(self, config: VideoTransformerConfig) -> None:
        """Build with random weights."""
        super().__init__()
        check(config)
        self.config = c = config
        self.sampling_steps = c.sampling_steps
        """Network calls a block; may be set at any time."""
        self.autoencoder = autoencoder(c)
        self.enter = nn.Linear(c.latent_channels * c.patch**2, c.width)
        self.places = nn.Parameter(0.02 * torch.randn(c.tokens, c.width))
        self.level = nn.Sequential(
            nn.Linear(FREQUENCIES, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        self.action = nn.Sequential(
            nn.Linear(2 * c.action_dim, 4 * c.width), nn.SiLU(), nn.Linear(4 * c.width, c.width)
        )
        self.no_action = nn.Parameter(0.02 * torch.randn(1 + c.memory, c.width))
        self.told = nn.Linear(c.width, PARTS * c.width)
        self.layers = nn.ModuleList(Layer(c.width, c.heads) for _ in range(c.depth))
        self.told_last = nn.Linear(c.width, 2 * c.width)
        self.leave = nn.Linear(c.width, c.latent_channels * c.patch**2)
        for last in (self.told, self.told_last, self.leave):  # a new layer changes nothing
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        turn = turns(1 + c.memory + c.max_chunk, c.width // c.heads)
        self.register_buffer("turn", turn, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.places.device

    @property
    def certain(self) -> bool:
        """Whether it never says how uncertain it is: True, there are no members to disagree."""
        return True

    def heavy(self) -> list[nn.Module]:
        """Where the time goes: what is worth compiling."""
        return [*self.layers, self.autoencoder.decoder]

    def noise_shape(self, k: int) -> tuple[int, int]:
        """Shape of one row's noise for a block of k steps: (k, f)."""
        return (k, self.config.latent_size)

    def encode(self, frames: Tensor, last: int | None = None) -> Tensor:
        """Turn pictures, uint8 (n, t, H, W, 3), into the latents of each, float32 (n, t, f).

        Every picture is encoded by itself. `last`: only at most so many at the end.
        """
        shown = frames[:, -last if last else 0 :]
        latents = [
            self.autoencoder.encode(pixels(part.to(self.device))).latent_dist.mode().float()
            for part in shown.flatten(0, 1).split(AT_ONCE)
        ]
        scaled = self.config.scaling_factor * torch.cat(latents)  # (n * t, c, h, w)
        return scaled.flatten(1).unflatten(0, shown.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """Draw latents (n, t, f) as pictures, uint8 (n, t, H, W, 3)."""
        c = self.config
        scaled = latents.flatten(0, 1) / c.scaling_factor
        drawn = [
            self.autoencoder.decode(part).sample.float()
            for part in scaled.unflatten(1, (c.latent_channels, c.side, c.side)).split(AT_ONCE)
        ]
        return to_frames(torch.cat(drawn)).unflatten(0, latents.shape[:2])

    def begin(self, frames: Tensor, robot: Tensor | None = None) -> VideoMemory:
        """Remember pictures, uint8 (n, t, H, W, 3), t >= 1: the first, and the last `memory`.

        robot: None; this model knows nothing but pictures.
        """
        missing = max(0, self.config.memory - frames.shape[1])
        recent = self.encode(frames, last=self.config.memory)
        whole = frames.shape[1] <= self.config.memory
        anchor = recent[:, :1] if whole else self.encode(frames[:, :1])  # (n, 1, f)
        recent = torch.cat([anchor.expand(-1, missing, -1), recent], dim=1)
        return VideoMemory(anchor[:, 0].clone(), recent)

    def imagine(
        self, memory: VideoMemory, actions: Tensor, noise: Tensor
    ) -> tuple[VideoMemory, Tensor, Tensor]:
        """Imagine the k frames that follow `memory` under actions (n, k, 7), 1 <= k <= max_chunk.

        noise: (n, k, f) standard normal, all the randomness there is. Returns the memory after
        these frames, their latents, float32 (n, k, f), and how uncertain each step is, float32
        (n, k); all fresh. The last are zeros: one network alone cannot tell what it does not know.
        """
        known = self.remember(torch.cat([memory.anchor[:, None], memory.recent], dim=1))
        latents = sample(
            lambda x, t: self.predict(known, x, t, actions), noise, self.sampling_steps
        )
        recent = torch.cat([memory.recent, latents], dim=1)[:, -self.config.memory :]
        after = VideoMemory(memory.anchor.clone(), recent.contiguous())
        return after, latents, latents.new_zeros(actions.shape[:2])

    def retell(self, latents: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """Imagine what was recorded block by block, each from what really came before it.

        So no block goes far astray: what the latents show is what came of the actions. latents:
        (n, 1 + t, f), as recorded; actions: (n, t, 7); noise: (n, t, f). Returns (n, t, f).
        """
        past = torch.cat([latents[:, :1].expand(-1, self.config.memory - 1, -1), latents], dim=1)
        told = []
        for s in range(0, actions.shape[1], self.config.max_chunk):
            block = slice(s, s + self.config.max_chunk)
            memory = VideoMemory(latents[:, 0], past[:, s : s + self.config.memory])
            told.append(self.imagine(memory, actions[:, block], noise[:, block])[1])
        return torch.cat(told, dim=1)

    def remember(self, latents: Tensor) -> Remembered:
        """Pass known frames through the network: the first and the recent ones, (n, 1 + m, f)."""
        if not self.config.anchor:  # the oldest of the recent stands where it would
            latents = torch.cat([latents[:, 1:2], latents[:, 1:]], dim=1)
        level = latents.new_full((len(latents),), self.config.memory_noise)
        _, pasts = self.run(latents, self.tell(level, self.no_action))
        return Remembered(latents[:, -1:], pasts)

    def predict(self, known: Remembered, noisy: Tensor, t: Tensor, actions: Tensor) -> Tensor:
        """Predict the clean latents, float32 (n, k, f), of noisy ones at times t (n,).

        They follow the known frames under actions (n, k, 7).
        """
        check_block(actions, self.config.max_chunk)
        told = self.tell(t, self.embed(actions))
        x, _ = self.run(noisy, told, known.pasts)
        shift, scale = self.told_last(told)[:, :, None].chunk(2, dim=-1)
        return known.last + self.unpatch(self.leave(adapt(x, shift, scale)).float())

    def embed(self, actions: Tensor) -> Tensor:
        """Embed actions (n, k, a), each with the sum of those up to it, as (n, k, d).

        Actions of robots are mostly moves, and a frame shows where they have led together.
        """
        far = actions.cumsum(1) / self.config.max_chunk**0.5
        return self.action(torch.cat([actions, far], dim=-1))

    def tell(self, level: Tensor, actions: Tensor) -> Tensor:
        """Put noise levels (n,) and embedded actions (..., t, d) together: (n, t, d)."""
        waves = get_timestep_embedding(1000 * level, FREQUENCIES, True, 0)
        return F.silu(self.level(waves)[:, None] + actions)

    def run(
        self, latents: Tensor, told: Tensor, pasts: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """Pass frames (n, t, f), told (n, t, d), through the layers, behind those of `pasts`.

        Returns their tokens (n, t, s, d), and what every layer has now seen.
        """
        first = pasts[0].key.shape[1] if pasts else 0
        turn = self.turn[:, first : first + latents.shape[1]]
        parts = self.told(told).unflatten(2, (PARTS, -1))
        x = self.enter(self.patches(latents)) + self.places
        seen = []
        for layer, past in zip(self.layers, pasts or [None] * len(self.layers), strict=True):
            x, past = layer(x, parts, turn, past)
            seen.append(past)
        return x, seen

    def patches(self, latents: Tensor) -> Tensor:
        """Cut latents (n, t, f) into patches (n, t, s, c p p), row by row."""
        c = self.config
        grid = latents.unflatten(2, (c.latent_channels, c.side, c.side))
        return F.pixel_unshuffle(grid, c.patch).flatten(3).transpose(2, 3)

    def unpatch(self, patches: Tensor) -> Tensor:
        """Put patches (n, t, s, c p p) together as latents (n, t, f)."""
        across = self.config.side // self.config.patch
        grid = patches.transpose(2, 3).unflatten(3, (across, across))
        return F.pixel_shuffle(grid, self.config.patch).flatten(2)


def autoencoder(config: VideoTransformerConfig) -> AutoencoderKL:
    """diffusers' image autoencoder in the shape of `config`, with random weights."""
    channels = config.block_out_channels
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=math.gcd(32, *channels),
        sample_size=config.image_size,
        scaling_factor=config.scaling_factor,
    )


def check(config: VideoTransformerConfig) -> None:
    """Raise ValueError where pictures have no whole tokens, or tokens no whole heads."""
    cell = config.patch << len(config.block_out_channels) - 1
    if config.image_size % cell:
        raise ValueError(
            f"image_size must be a multiple of {cell}, the pixels along an edge of a token, got "
            f"{config.image_size}."
        )
    if config.width % (2 * config.heads):
        raise ValueError(
            f"width must be a multiple of 2 x heads = {2 * config.heads}, got {config.width}; "
            "change either."
        )
    check_count("memory", config.memory)
