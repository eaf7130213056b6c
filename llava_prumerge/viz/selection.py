"""What a vision reducer keeps of some images behind a bare tower: the part of the viewer that runs one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava_prumerge.data.images import ImagePreprocessor, padded_picture
from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.asking import ImageTokens
from llava_prumerge.inference.merging import merge_weights
from llava_prumerge.inference.watching import Tile
from llava_prumerge.methods.base import VisionReducer, VisionTokens
from llava_prumerge.model.vision_tower import encode, image_ids, prepare, resize
from llava_prumerge.viz.overlay import SIDE

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Viewer:
    """A tower with its preprocessing.

    Attributes:
        tower: transformers' CLIP or SigLIP vision model.
        preprocessor: makes its pixels.
        feature_layer: index into the tower's hidden states.
    """

    tower: nn.Module
    preprocessor: ImagePreprocessor
    feature_layer: int = -2

    @torch.inference_mode()
    def look(self, images: Sequence[Image], reducer: VisionReducer) -> list[tuple[ImageTokens, Image]]:
        """Run tower and reducer on images in RGB. -> what is kept of each, and the image as the tower sees it

        Raises:
            InputError: the reducer acts behind a projector, which a tower has not.
        """
        if reducer.site == "projected":
            raise InputError(f"{reducer.name} acts after the projector: give --model instead of --tower")
        pixels = self.preprocessor(images).to(self.tower.device)
        height, width = pixels.shape[-2:]
        patch = self.tower.config.patch_size
        prepare(self.tower, reducer)
        output = encode(self.tower, resize(pixels, reducer.input_size(height, width, patch)), self.feature_layer)
        tokens = VisionTokens(
            output.features,
            output.grid,
            output.projections,
            output.heads,
            ids=image_ids(pixels),
            class_token=output.class_token,
            left=output.left,
        )
        attention = reducer.attention(tokens).view(-1, *output.grid).float().cpu()
        weights, (_, valid, origin) = merge_weights(reducer, tokens)
        full, colour, found = (height // patch) * (width // patch), self.preprocessor.padding_colour, []
        for at, image in enumerate(images):
            made, held = tuple(origin[at][valid[at]].tolist()), None if weights is None else weights[at][valid[at]]
            tile = Tile(output.grid, None, attention[at], made, held)
            kept = tuple((0, unit) for unit in made)
            seen = ImageTokens(full, len(made), (len(made),), kept, {}, (tile,))
            found.append((seen, padded_picture(image, SIDE, colour) if self.preprocessor.aspect == "pad" else image))
        return found


def viewer_of_tower(path: str) -> Viewer:
    """A viewer on a bare CLIP or SigLIP folder; its second-to-last hidden state is used, as LLaVA-1.5 does."""
    from transformers import CLIPVisionModel, SiglipVisionModel

    from llava_prumerge.model.parts import UNUSED_BY_TOWER
    from llava_prumerge.model.strict_loading import load_strictly, read_config

    kind = read_config(path).model_type
    towers: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
    family = kind.removesuffix("_vision_model")
    if family not in towers:
        raise InputError(f"{path} is a {kind!r} model; a vision tower is one of {', '.join(towers)}")
    tower = load_strictly(towers[family], path, UNUSED_BY_TOWER).eval()
    return Viewer(tower, ImagePreprocessor(path))
