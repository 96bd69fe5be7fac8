"""Keys and values of a generation, in room that is made once.

transformers' own cache joins a new token's to all others, in new tensors, for every token.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class _Room(DynamicLayer):
    """A layer's keys and values: views of room for all rows and tokens, [B, H, S, D] each."""

    def __init__(self, rows: int, tokens: int) -> None:
        super().__init__()
        self._shape = rows, tokens
        self._room: tuple[torch.Tensor, ...] = ()
        self._rows = slice(None)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write them behind what the rows hold, and return all that they hold."""
        states = key_states, value_states
        if not self._room:
            self.lazy_initialization(*states)
            self._room = tuple(self._empty(one) for one in states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        for room, one in zip(self._room, states, strict=True):
            room[self._rows, :, start:end] = one
        return self._show(end)

    def turn_to(self, rows: slice, length: int) -> None:
        self._rows = rows
        if self._room:
            self._show(length)

    def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (room[self._rows, :, :length] for room in self._room)
        self.keys, self.values = keys, values
        return keys, values

    def _empty(self, states: torch.Tensor) -> torch.Tensor:
        rows, tokens = self._shape
        return states.new_empty((rows, states.shape[1], tokens, states.shape[3]))


class RoomyCache(DynamicCache):
    """Room for so many tokens of so many rows. Layers whose windows slide stay transformers' own.

    `by_rows`: rows can be read one after another, as there are no such layers.
    """

    def __init__(self, config: Any, rows: int, tokens: int) -> None:
        super().__init__(config=config)
        self.layers = [
            _Room(rows, tokens) if type(layer) is DynamicLayer else layer for layer in self.layers
        ]
        self.by_rows = all(isinstance(layer, _Room) for layer in self.layers)

    def turn_to(self, rows: slice, length: int) -> None:
        """What comes next belongs to these rows, which hold so many tokens."""
        for layer in self.layers:
            if isinstance(layer, _Room):
                layer.turn_to(rows, length)
