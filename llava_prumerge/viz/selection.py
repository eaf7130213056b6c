"""What a vision reducer keeps of some images: the part of the viewer that runs a tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llava_prumerge.data.images import ImagePreprocessor, padded_picture
from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods.base import VisionReducer, VisionTokens
from llava_prumerge.model.vision_tower import encode, image_ids, resize

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 576  # pixels of a drawn image


@dataclass(frozen=True)
class Selection:
    """What is left of one image.

    Attributes:
        image: padded to a square, as the tower sees it but in the resolution of drawings.
        grid: (rows, columns) of patches.
        origin: raster index of the patch each kept token stands for; -1 for one that stands for several.
        attention: [rows, columns] that each patch receives.
        full: patches of the image at the tower's own size; a method that resizes the image has fewer in its grid.
        class_token: whether that attention is the class token's; else the mean over all patches.
    """

    image: Image
    grid: tuple[int, int]
    origin: tuple[int, ...]
    attention: Tensor
    full: int
    class_token: bool

    @property
    def tokens(self) -> int:
        """How many tokens reach the language model."""
        return len(self.origin)

    @property
    def patches(self) -> tuple[int, ...]:
        """The patches that tokens stand for, each once, in raster order."""
        return tuple(sorted({index for index in self.origin if index >= 0}))


@dataclass
class Viewer:
    """A tower with its preprocessing, and the reducer to look at.

    Attributes:
        tower: transformers' CLIP or SigLIP vision model.
        preprocessor: makes its pixels.
        reducer: the method.
        feature_layer: index into the tower's hidden states.
        project: into the language model's space, for methods that act there.
        prompt: gives embeddings [1, T, D] and mask [1, T] of a question, for methods that read it.
    """

    tower: nn.Module
    preprocessor: ImagePreprocessor
    reducer: VisionReducer
    feature_layer: int = -2
    project: Callable[[Tensor], Tensor] | None = None
    prompt: Callable[[], tuple[Tensor, Tensor]] | None = None

    @torch.inference_mode()
    def look(self, images: Sequence[Image]) -> list[Selection]:
        """Run tower and reducer on images in RGB."""
        pixels = self.preprocessor(images).to(self.tower.device)
        height, width = pixels.shape[-2:]
        patch = self.tower.config.patch_size
        seen = resize(pixels, self.reducer.input_size(height, width, patch))
        output = encode(self.tower, seen, self.feature_layer)
        features = output.features
        if self.reducer.site == "projected":
            if self.project is None:
                raise InputError(f"{self.reducer.name} acts after the projector: give --model instead of --tower")
            features = self.project(features)
        prompt = None if self.prompt is None else self._prompts(len(images))
        token = output.class_token if self.reducer.site == "tower" else None
        tokens = VisionTokens(
            features, output.grid, output.projections, output.heads, prompt, image_ids(pixels), class_token=token
        )
        _, valid, origin = self.reducer(tokens)
        attention = self.reducer.attention(tokens).view(-1, *output.grid).cpu()
        class_token = output.projections()[0].shape[1] == 1
        colour = self.preprocessor.padding_colour
        return [
            Selection(
                image=padded_picture(image, SIDE, colour) if self.preprocessor.aspect == "pad" else image,
                grid=output.grid,
                origin=tuple(origin[index][valid[index]].tolist()),
                attention=attention[index],
                full=(height // patch) * (width // patch),
                class_token=class_token,
            )
            for index, image in enumerate(images)
        ]

    def _prompts(self, images: int) -> Callable[[], tuple[Tensor, Tensor]]:
        def repeated() -> tuple[Tensor, Tensor]:
            text, mask = self.prompt()
            return text.expand(images, -1, -1), mask.expand(images, -1)

        return repeated


def viewer_of_tower(path: str, reducer: VisionReducer) -> Viewer:
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
    return Viewer(tower, ImagePreprocessor(path), reducer)


def viewer_of_model(model: Any, processor: Any, question: str | None) -> Viewer:
    """A viewer on a LLaVA-1.5 with a reducer."""

    def prompt() -> tuple[Tensor, Tensor]:
        ids = processor.tokenizer(question, return_tensors="pt").input_ids.to(model.device)
        return model.get_input_embeddings()(ids), torch.ones_like(ids, dtype=torch.bool)

    return Viewer(
        tower=model.model.vision_tower,
        preprocessor=ImagePreprocessor(processor.image_processor),
        reducer=model.model.reducer,
        feature_layer=model.config.vision_feature_layer,
        project=model.model.project,
        prompt=None if question is None else prompt,
    )
