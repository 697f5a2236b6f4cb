"""How long the rest of an evaluation takes, as far as what was done so far tells."""

from __future__ import annotations

import time
from collections.abc import Callable


class Outlook:
    """Models left, and the time that they need if they are as fast as those before.

    Args:
        n_models: how many pairs of model and flow are evaluated.
        n_images: images of each.
        now_s: the clock.
    """

    def __init__(self, n_models: int, n_images: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._n_models, self._n_images, self._now_s = n_models, n_images, now_s
        self._n_begun = self._n_left = self._n_measured = 0
        self._measured_s = self._made_s = 0.0
        self._last_s = now_s()

    def begin(self, n_images: int) -> None:
        """Notes that the next model is quantized and compiled, and lacks so many images."""
        self._made_s += self._passed_s()
        self._n_begun, self._n_left = self._n_begun + 1, n_images

    def advance(self, n_images: float) -> None:
        """Notes that the engines have answered on more images."""
        self._measured_s += self._passed_s()
        self._n_measured += int(n_images)
        self._n_left -= int(n_images)

    def left_s(self) -> float | None:
        """Returns the seconds that are left; None if nothing is known yet."""
        if not self._n_measured or not self._n_begun:
            return None
        n_later = max(0, self._n_models - self._n_begun)
        each_s = self._measured_s / self._n_measured
        return (self._n_left + n_later * self._n_images) * each_s + n_later * self._made_s / self._n_begun

    def text(self) -> str:
        """Returns the models left and the time, for a line of progress."""
        left_s = self.left_s()
        model = f"model {self._n_begun} of {self._n_models}"
        return model if left_s is None else f"{model}, about {time_text(left_s)} left in all"

    def _passed_s(self) -> float:
        before, self._last_s = self._last_s, self._now_s()
        return self._last_s - before


def time_text(seconds: float) -> str:
    """Returns a duration as a person says it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
