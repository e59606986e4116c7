"""The section ``physpre.hot_frames``."""

from __future__ import annotations

from mdl_physpre.utils.settings import Settings, setting


class HotFrames(Settings):
    """Frames of the teacher's own dynamics in the pretraining set, each structure heated at constant volume."""

    n: int = setting(0, "Frames of each structure, evenly from its run; 0: none.", ge=0)
    temperature: float = setting(300.0, "At the start.", "K", gt=0)
    temperature_end: float = setting(5000.0, "At the end of the run.", "K", gt=0)
    steps: int = setting(400, "Steps of each run.", ge=1)
    timestep: float = setting(1.0, "Time step.", "fs", gt=0)
