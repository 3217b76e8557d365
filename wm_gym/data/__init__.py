"""Recorded episodes: robomimic HDF5 on disk, and the windows that models are trained on."""

from wm_gym.data.episode import Episode
from wm_gym.data.reading import EpisodeFile, load
from wm_gym.data.writing import EpisodeWriter

__all__ = ["Episode", "EpisodeFile", "EpisodeWriter", "load"]
