"""open_clip's layout: the image tower of a checkpoint, read as a CLIP folder of transformers that serves as a vision tower."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPImageProcessorPil

from llava_prumerge.model.checkpoints.layout import MODEL_FILE, TOWER, Layout, Record, Source, Tower, dtype_of
from llava_prumerge.model.checkpoints.plan import with_dtype
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.open_clip import (
    TOWER_PREFIX,
    OpenClipFolder,
    architecture,
    config_of,
    image_tower,
    pixel_settings,
    sources_of,
    tower_shapes,
)
from llava_prumerge.model.tensor_files import Entry, list_tensors
from llava_prumerge.model.weight_files import LoadingError, name_first


class OpenClip(Layout):
    """The layout."""

    name = "open_clip"
    is_target = False

    def kind_of(self, source: Source) -> str | None:
        """A folder as on the Hub, or a checkpoint of its training, which is what no other layout claims."""
        return TOWER if source.path.is_file() or OpenClipFolder.is_one(source.path) else None

    def read(self, request: Request, kind: str) -> Tower:
        """The image tower, tensor by tensor."""
        source = request.source
        if OpenClipFolder.is_one(source):
            folder = OpenClipFolder(source)
            settings, statistics, file = folder.model, folder.preprocess, folder.weights()
        elif request.open_clip_model is not None:
            settings, statistics, file = architecture(request.open_clip_model), {}, source
        else:
            option = "--open-clip-model names its architecture or a JSON file"
            raise LoadingError(f"{source} is an open_clip checkpoint: {option}")
        try:
            config = config_of(settings)
            held = image_tower({item.key: item for item in list_tensors(file)})
        except ValueError as error:
            raise LoadingError(f"{file}: {error}") from error
        deeper = [key for key in held if f"resblocks.{config.num_hidden_layers}." in key]
        if deeper:
            layers = config.num_hidden_layers
            raise LoadingError(f"{file} holds visual.{deeper[0]}, but the configuration has {layers} layers")
        needed, found = tower_shapes(config), []
        for name, (key, part) in sources_of(config.num_hidden_layers).items():
            if key not in held:
                raise LoadingError(f"{file} lacks visual.{key}")
            item = held[key]
            shape = item.shape if part is None else (item.shape[0] // 3, *item.shape[1:])
            if shape != needed[name]:
                raise LoadingError(f"{file}: {name} is {shape}, the configuration makes it {needed[name]}")
            make = None if part is None else (lambda weight, part=part: weight.chunk(3)[part])
            how = "as it is" if part is None else f"third {part + 1} of 3"
            found.append(Entry(TOWER_PREFIX + name, shape, item.dtype, (item,), how, make))
        lacking = set(needed) - {entry.key.removeprefix(TOWER_PREFIX) for entry in found}
        assert not lacking, name_first(lacking)
        return Tower(found, config, pixel_settings(config, statistics), Record(str(source), self.name))

    def files(self, made: Tower, request: Request) -> dict[str, list[Entry]]:
        """The tower."""
        return {MODEL_FILE: list(with_dtype({entry.key: entry for entry in made.found}, dtype_of(request)).values())}

    def write_beside(self, made: Tower, request: Request, folder: Path) -> None:
        """Configuration and image processor of a CLIP."""
        made.config.architectures = ["CLIPVisionModel"]
        made.config.dtype = dtype_of(request) or made.found[0].dtype
        made.config.save_pretrained(folder)
        CLIPImageProcessorPil(**made.pixels).save_pretrained(folder)


LAYOUT = OpenClip()
