"""Keys and values of the tokens decoded so far, for many sequences that share a beginning.

Names: E environments, R = E * n rows (n beams or candidates per environment), H heads, P prefix tokens, S suffix
tokens. The prefix (the real history) is the same for all rows of an environment, so it is stored once and attended
to as a matrix product. The suffix (what was planned) is each row's own. Value tokens are in neither: nothing attends
to them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KeysAndValues = tuple[Tensor, Tensor]


class KeyValueCache:
    """A prefix per environment and a preallocated suffix per row, for every layer."""

    def __init__(self, pairs: list[KeysAndValues], capacity: int, *, shared: bool) -> None:
        """Begin with the keys and values of sequences that were encoded whole.

        Args:
            pairs: per layer, keys and values (R, H, T, C / H).
            capacity: tokens that may be appended.
            shared: True makes them the prefix of every environment, R = E; False each row's own suffix.
        """
        self.prefix = pairs if shared else [(k[:, :, :0], v[:, :, :0]) for k, v in pairs]
        self.length = 0 if shared else pairs[0][0].shape[2]
        self.suffix: list[KeysAndValues] = []
        for k, v in pairs:
            rows, heads, _, head_dim = k.shape
            keys, values = (k.new_empty(rows, heads, self.length + capacity, head_dim) for _ in range(2))
            keys[:, :, : self.length] = k[:, :, : self.length]
            values[:, :, : self.length] = v[:, :, : self.length]
            self.suffix.append((keys, values))

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write one token's key and value (R, H, C / H) of a layer behind its suffix, without advancing it."""
        keys, values = self.suffix[layer]
        keys[:, :, self.length] = key
        values[:, :, self.length] = value

    def advance(self) -> None:
        """Count the token that every layer has appended."""
        self.length += 1

    def reorder(self, parents: Tensor) -> None:
        """Make row i a copy of row `parents[i]`; parents (R',) must keep the rows of an environment
        together, as many for each."""
        for layer, (keys, values) in enumerate(self.suffix):
            reordered = []
            for old in (keys, values):
                new = old.new_empty(len(parents), *old.shape[1:])
                torch.index_select(old[:, :, : self.length], 0, parents, out=new[:, :, : self.length])
                reordered.append(new)
            self.suffix[layer] = (reordered[0], reordered[1])


def attend(query: Tensor, cache: KeyValueCache, layer: int, *, appended: bool) -> Tensor:
    """Attention of one token per row over prefix and suffix.

    Args:
        query: (R, H, C / H).
        appended: whether the token itself has been appended and is attended to.

    Returns:
        (R, H, C / H).
    """
    R, H, head_dim = query.shape
    prefix_keys, prefix_values = cache.prefix[layer]
    E, _, P, _ = prefix_keys.shape
    S = cache.length + appended
    keys, values = (pair[:, :, :S] for pair in cache.suffix[layer])
    query = query / math.sqrt(head_dim)
    grouped = query.view(E, R // E, H, head_dim).transpose(1, 2)  # (E, H, n, C / H)
    shared_scores = (grouped @ prefix_keys.transpose(2, 3)).transpose(1, 2).reshape(R, H, P)
    own_scores = (query[:, :, None] @ keys.transpose(2, 3))[:, :, 0]  # (R, H, S); keys @ query is four times slower
    weights = torch.cat([shared_scores, own_scores], dim=-1).softmax(-1)
    shared_weights = weights[..., :P].view(E, R // E, H, P).transpose(1, 2)
    shared = (shared_weights @ prefix_values).transpose(1, 2).reshape(R, H, head_dim)
    own = (weights[..., None, P:] @ values)[..., 0, :]
    return shared + own
