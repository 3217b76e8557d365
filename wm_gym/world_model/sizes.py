"""World models from a laptop to the paper, and what each costs.

Costs are counted on models without memory (torch's `meta` device), so that the largest needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import PRESETS, WorldModelConfig
from wm_gym.world_model.transformer import VideoTransformer, VideoTransformerConfig

SIZES: dict[str, WorldModelConfig | VideoTransformerConfig] = {
    **PRESETS,  # two CPU cores, 64 px
    "small": VideoTransformerConfig(  # one GPU, 128 px
        image_size=128,
        depth=6,
        width=512,
        heads=8,
        block_out_channels=(64, 128, 256, 256),
        layers_per_block=1,
        latent_channels=16,  # 4 lose what is a few pixels wide in pictures this small
        scaling_factor=1.0,
        sampling_steps=1,  # clean frames are predicted: a second call costs a third of the speed
    ),
    "paper": VideoTransformerConfig(),  # 256 px, WMPO 4.1
}


class Costs(NamedTuple):
    """What a world model takes; FLOP are those of matrix products and convolutions."""

    weights: int
    autoencoder: int
    """Those of the weights that only turn pictures into latents and back."""
    frame_flop: int
    """To imagine a frame, in blocks of `max_chunk`, as a latent."""
    picture_flop: int
    """To draw it, where it is looked at."""
    row_bytes: int
    """The memory that an environment keeps of a row."""
    cache_bytes: int
    """Keys and values (bfloat16) of a row's known frames, while a block is imagined."""

    def memory_bytes(self, rows: int) -> int:
        """Weights in bfloat16 and what `rows` rows keep, caches too; activations come on top."""
        return 2 * self.weights + rows * (self.row_bytes + self.cache_bytes)


def costs(config: WorldModelConfig | VideoTransformerConfig) -> Costs:
    """Count what the model of a config takes."""
    with torch.device("meta"), torch.no_grad():
        video = isinstance(config, VideoTransformerConfig)
        model = VideoTransformer(config) if video else WorldModel(config)
        size, k = config.image_size, config.max_chunk
        memory = model.begin(torch.zeros(1, 1, size, size, 3, dtype=torch.uint8))
        given = torch.zeros(1, k, config.action_dim), torch.zeros(1, *model.noise_shape(k))
        latents = torch.zeros(1, 1, config.latent_size)
        return Costs(
            weights=weights(model),
            autoencoder=weights(model.autoencoder) if video else 0,
            frame_flop=flop(lambda: model.imagine(memory, *given)) // k,
            picture_flop=flop(lambda: model.decode(latents)),
            row_bytes=sum(4 * part.numel() for part in memory),
            cache_bytes=cache_bytes(config) if video else 0,
        )


def weights(model: nn.Module) -> int:
    """Numbers that a model learns."""
    return sum(p.numel() for p in model.parameters())


def flop(call: Callable[[], Any]) -> int:
    """Count the FLOP of a call, a multiplication and an addition being two.

    Everything that it touches must be on the `meta` device: elsewhere attention is one operation
    that torch's counter may not know, and would go uncounted without a word.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def cache_bytes(config: VideoTransformerConfig) -> int:
    """Count the keys and values that the layers keep of a row's known frames, in bfloat16."""
    return config.depth * (1 + config.memory) * config.tokens * 2 * config.width * 2


def table(rows: int = 64) -> str:
    """Tell what every size costs, as a Markdown table; `rows`: of the last column."""
    head = (
        "size",
        "pictures",
        "weights",
        "of these autoencoder",
        "GFLOP a frame",
        "GFLOP a picture",
        "weights in bfloat16",
        "memory a row",
        "cache a row",
        f"weights and {rows} rows",
    )
    lines = [head, ("---",) * len(head)]
    for name, config in SIZES.items():
        c = costs(config)
        lines.append(
            (
                name,
                f"{config.image_size} px",
                f"{short(c.weights / 1e6)} M",
                f"{short(c.autoencoder / 1e6)} M",
                short(c.frame_flop / 1e9),
                short(c.picture_flop / 1e9),
                f"{short(2 * c.weights / 1e6)} MB",
                f"{short(c.row_bytes / 1e3)} kB",
                f"{short(c.cache_bytes / 1e6)} MB",
                f"{short(c.memory_bytes(rows) / 1e9)} GB",
            )
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def short(number: float) -> str:
    """Write a number with three digits that count: 1,220 or 0.0415."""
    return f"{float(f'{number:.3g}'):,g}"
