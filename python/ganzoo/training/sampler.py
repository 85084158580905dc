"""Batches of real images, and the random stream that a run owns."""

import torch

from ganzoo.errors import ArgumentError


class RandomStream:
    """PyTorch's default generators as one run sees them: entering puts the run's state in place, leaving puts the
    caller's back.

    So whatever a run draws, dropout included, depends on its seed alone, and a library user's own random numbers are
    left alone.
    """

    def __init__(self, seed, device):
        self._device = torch.device(device)
        with self._restored():
            torch.default_generator.manual_seed(seed)
            if self._device.type == "cuda":
                with torch.cuda.device(self._device):
                    torch.cuda.manual_seed(seed)
            self._state = self._get()

    def _get(self):
        state = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def _set(self, state):
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self._device)

    def __enter__(self):
        self._outer = self._get()
        self._set(self._state)

    def __exit__(self, *exception):
        self._state = self._get()
        self._set(self._outer)

    def _restored(self):
        return torch.random.fork_rng([self._device] if self._device.type == "cuda" else [])

    def state_dict(self):
        return self._state

    def load_state_dict(self, state):
        self._state = state


class Sampler:
    """Draws batches without replacement, in a new random order each epoch; the images that do not fill a last batch
    are left for other epochs."""

    def __init__(self, images, batch):
        if not 1 <= batch <= len(images):
            raise ArgumentError("batch", f"at most the number of images, {len(images)}", batch)
        self._images, self._batch = images, batch
        self._order, self._position = torch.empty(0, dtype=torch.int64, device=images.device), 0
        self.drawn = 0

    def draw(self):
        """The next batch of images, (batch, C, H, W)."""
        if self._position + self._batch > len(self._order):
            self._order, self._position = torch.randperm(len(self._images), device=self._images.device), 0
        chosen = self._order[self._position : self._position + self._batch]
        self._position += self._batch
        self.drawn += self._batch
        return self._images[chosen]

    def state_dict(self):
        return {"order": self._order, "position": self._position, "drawn": self.drawn}

    def load_state_dict(self, state):
        self._order, self._position = state["order"].to(self._images.device), state["position"]
        self.drawn = state["drawn"]
