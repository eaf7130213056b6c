"""What a frozen vision tower makes of an image, kept on disk: the tower runs once for each image, whatever is tried behind it.

    FOLDER/TOWER/ab/IMAGE-INDEX.safetensors      one hidden state [S, C] of one image, as the tower gave it

TOWER is a hash of the tower's weights and configuration and of everything else that decides a bit of its output (attention
implementation, precision, kind of device, releases of torch and transformers), IMAGE one of the image's pixel values behind the
processor, INDEX that of the hidden state. The state that becomes the features is always kept, those that methods ask about when they
are asked for. Processes may share a folder: a file gets its name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.files import write_bytes
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.vision_tower import TOWERS

logger = logging.getLogger(__name__)

GIGABYTES = 20
"""The most that a folder holds, unless told otherwise."""
_STATE, _TURNED = "state", "state_by_channel"
_NAME, _RECOUNT = (
    40,
    256,
)  # hexadecimal digits of a hash that make a name; writes between two looks at what others wrote


def keep_tower_states(model: Any, folder: str | os.PathLike[str] | None, gigabytes: int = GIGABYTES) -> None:
    """Let a model's vision tower read what it made of an image before, and keep what it makes of new ones.

    Args:
        model: of ours, with the methods it will have.
        folder: of the states; made if it is missing. None: nothing is kept.
        gigabytes: how much it may hold; what goes beyond is computed and not kept.

    Raises:
        ModelError: this model's tower cannot be served.
        FileError: the folder cannot be made.
    """
    if folder is None:
        return
    reason = _refusal(model)
    if reason is not None:
        raise ModelError(f"tower_cache={os.fspath(folder)}: {reason}")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(folder, f"is no folder that tower_cache can use: {error.strerror}", error.errno) from error
    model.model.vision_tower.cache = TowerCache(Path(folder), gigabytes * 10**9)


def _refusal(model: Any) -> str | None:
    host = model.model
    if not getattr(host, "caches_tower", False):
        return f"serves LLaVA-1.5's own kind of model, and this is one of type {model.config.model_type}"
    kind = host.vision_tower.config.model_type
    if kind not in TOWERS or not TOWERS[kind].plain:
        served = ", ".join(sorted(name for name, spec in TOWERS.items() if spec.plain))
        return f"serves vision towers that see each image by itself ({served}), and this one is of type {kind}"
    if not isinstance(host.config.vision_feature_layer, int):
        return f"serves features of one layer, and vision_feature_layer is {host.config.vision_feature_layer}"
    if host.reducer is not None and host.reducer.cuts:
        return f"{host.reducer.name} cuts inside the vision tower, so that what the tower makes is the method's own"
    return None


class TowerCache:
    """A folder of hidden states.

    Args:
        folder: it exists.
        most_bytes: that it may hold.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._tower: tuple[Hashable, str] = (None, "")
        self._used, self._written, self._closed = 0, 0, False

    def states(
        self,
        tower: Any,
        pixel_values: Tensor,
        numbers: Mapping[Any, int],
        run: Callable[[Tensor], Mapping[Any, Tensor]],
    ) -> CachedStates:
        """The hidden states of a batch, each read or made when it is first asked for.

        Args:
            tower: whose they are.
            pixel_values: [N, 3, h, w] as the tower gets them.
            numbers: the index of each state that may be asked for, by the names that `run` gives.
            run: runs the tower on some of the images.
        """
        place = self.folder / self._name_of(tower, pixel_values)
        return CachedStates(self, place, pixel_values, numbers, run)

    def _name_of(self, tower: Any, pixel_values: Tensor) -> str:
        """The hash of a tower, worked out again where a weight has changed in memory."""
        stamp = tuple(
            (tensor.data_ptr(), None if tensor.is_inference() else tensor._version, tensor.dtype)
            for tensor in tower.state_dict().values()
        )
        kind = pixel_values.device.type
        autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        around = (kind, autocast, torch.get_float32_matmul_precision(), tower.config._attn_implementation)
        if self._tower[0] != (stamp, around):
            self._tower = ((stamp, around), tower_digest(tower, around)[:_NAME])
        return self._tower[1]

    def read(self, file: Path, device: torch.device) -> Tensor | None:
        """A state [S, C]; None where there is none that is whole."""
        try:
            with safe_open(file, framework="pt", device=str(device)) as opened:
                turned = _TURNED in list(opened.keys())
                state = opened.get_tensor(_TURNED if turned else _STATE)
        except (SafetensorError, OSError):
            return None
        return None if state.dim() != 2 else state.t() if turned else state

    def write(self, file: Path, state: Tensor) -> None:
        """Keep a state, if there is room for it."""
        if self._closed:
            return
        turned = _is_turned(state)
        content = save({_TURNED if turned else _STATE: (state.t() if turned else state).detach().contiguous().cpu()})
        if self._written % _RECOUNT == 0:
            self._used = _bytes_in(self.folder)
        self._written, self._used = self._written + 1, self._used + len(content)
        if self._used > self.most_bytes:
            self._close(f"holds its {self.most_bytes / 1e9:g} GB (tower_cache_gb)")
            return
        try:
            write_bytes(file, content, sync=False)  # a file that a power failure empties is read as none
        except FileError as error:
            self._close(f"takes no more: {error.reason}")

    def _close(self, reason: str) -> None:
        self._closed = True
        logger.warning("tower_cache=%s %s; further images go through the tower each time", self.folder, reason)


class CachedStates(Mapping[Any, Tensor]):
    """Hidden states [N, S, C] of a batch by name. See `TowerCache.states`."""

    def __init__(
        self,
        cache: TowerCache,
        place: Path,
        pixel_values: Tensor,
        numbers: Mapping[Any, int],
        run: Callable[[Tensor], Mapping[Any, Tensor]],
    ) -> None:
        self._cache, self._pixels, self._numbers, self._run = cache, pixel_values, numbers, run
        digests = [pixel_digest(image) for image in pixel_values]
        self._files = [place / digest[:2] / digest[:_NAME] for digest in digests]
        self._made: dict[int, Mapping[Any, Tensor]] = {}  # what the tower has made in this pass, by image
        self._found: dict[int, Tensor] = {}

    def __getitem__(self, name: Any) -> Tensor:
        number = self._numbers[name]
        if number not in self._found:
            self._found[number] = self._all(name, number)
        return self._found[number]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def _all(self, name: Any, number: int) -> Tensor:
        files = [file.with_name(f"{file.name}-{number}.safetensors") for file in self._files]
        rows = [self._cache.read(file, self._pixels.device) for file in files]
        missing = [at for at, row in enumerate(rows) if row is None]
        self._make([at for at in missing if at not in self._made])
        for at in missing:
            self._cache.write(files[at], self._made[at][name])
        whole = [self._made[at][name] if row is None else row for at, row in enumerate(rows)]
        if _is_turned(whole[0]):  # sums come out the same to the bit only in the same order in memory
            return torch.stack([row.t() for row in whole]).transpose(1, 2)
        return torch.stack(whole)

    def _make(self, images: Sequence[int]) -> None:
        if images:
            made = self._run(self._pixels[list(images)])
            for row, at in enumerate(images):
                self._made[at] = {name: states[row] for name, states in made.items()}


def _is_turned(state: Tensor) -> bool:
    """Whether a state [S, C] lies in memory channel by channel, as SigLIP's do, and not token by token."""
    return state.stride(0) < state.stride(1)


def pixel_digest(image: Tensor) -> str:
    """A hash of an image's values, dtype and shape."""
    digest = hashlib.sha256(f"{image.dtype} {tuple(image.shape)}".encode())
    digest.update(_bytes_of(image))
    return digest.hexdigest()


def tower_digest(tower: Any, around: Sequence[Any]) -> str:
    """A hash of everything that decides what a tower makes of pixels.

    Args:
        around: what is not in the tower: device, precision and the like, as plain values.
    """
    everybodys = transformers.PreTrainedConfig().to_dict()  # where it lies, who saved it, ...
    own = {name: value for name, value in tower.config.to_dict().items() if name not in everybodys}
    releases = torch.__version__, transformers.__version__
    said = [type(tower).__name__, tower.config.model_type, own, *releases, *around]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()


def _bytes_in(folder: Path) -> int:
    """What the files below a folder hold; one that goes away meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
