"""Put a run together: records, model, trainer; and after it the complete model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType
from transformers import PrinterCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from llava_prumerge.data.collator import Collator
from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.data.image_paths import trusted_folders
from llava_prumerge.data.images import ImagePreprocessor
from llava_prumerge.data.packing import PackedDataset
from llava_prumerge.data.processed_images import ProcessedImages
from llava_prumerge.data.quarantine import QuarantiningDataset
from llava_prumerge.data.regions import RegionDataset
from llava_prumerge.data.videos import VideoFolder
from llava_prumerge.model.packing import check_turns
from llava_prumerge.model.tower_cache import keep_tower_states
from llava_prumerge.train.arguments import RecipeError, TrainArguments
from llava_prumerge.train.estimate import BACKENDS, read_backend
from llava_prumerge.train.progress import ProgressReport
from llava_prumerge.train.quantization import check_quantization
from llava_prumerge.train.settings import check_attention, start_process_group, training_arguments
from llava_prumerge.train.stages import load_start, prepare_stage, reader_for, start_base
from llava_prumerge.train.trainer import LlavaTrainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from transformers import LlavaProcessor, TrainerCallback

    from llava_prumerge.model.configuration import PruMergeLlavaConfig

logger = logging.getLogger(__name__)


def build_dataset(
    arguments: TrainArguments, config: PruMergeLlavaConfig, processor: LlavaProcessor
) -> QuarantiningDataset:
    """The records with the model's tokenizer and image processor, replacements for the bad ones."""
    reader = reader_for(arguments, processor, config)
    places, videos = reader.places, None
    if reader.takes_videos:
        folder = str(arguments.videos or arguments.images)
        videos = VideoFolder(folder, arguments.frames, trusted=trusted_folders(arguments.trusted))
    try:
        if places is None:
            pixels: ImagePreprocessor | ProcessedImages = ProcessedImages(processor, reader.beside)
            places = pixels.typical_places
        else:
            pixels = ImagePreprocessor(processor.image_processor, aspect=arguments.image_aspect)
        kind = dataset_kind(arguments)
        if kind is not LlavaDataset and not isinstance(pixels, ImagePreprocessor):
            given = f"objective={arguments.objective}, packing={arguments.packing}"
            raise RecipeError(f"{given}: only LLaVA-1.5's own kind of model is served, and not {config.model_type}")
        dataset = kind(
            arguments.data,
            arguments.images,
            processor.tokenizer,
            pixels,
            reader.template,
            image_token_id=reader.image_token_id,
            image_tokens=places,
            max_length=arguments.max_length,
            trusted=arguments.trusted,
            videos=videos,
            video_token_id=reader.video_token_id,
        )
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"data={arguments.data}: {error}") from error
    wanted = getattr(getattr(config, "vision_config", None), "num_frames", None)
    if wanted not in (None, arguments.frames) and any(dataset.rows["videos"]):
        raise RecipeError(f"frames={arguments.frames}: the model's tower takes {wanted} frames of each video")
    return QuarantiningDataset(dataset, arguments.seed)


def dataset_kind(arguments: TrainArguments) -> type[LlavaDataset]:
    """What is made of records."""
    if arguments.objective == "regions":
        return RegionDataset
    return PackedDataset if arguments.packing == "turns" else LlavaDataset


def use_tower_cache(model: nn.Module, arguments: TrainArguments) -> None:
    """Keep what the vision tower makes of images, where the recipe names a folder.

    Raises:
        RecipeError: ZeRO-3, whose ranks have to make the same calls, whether they know an image or not.
        ModelError: the model cannot be served.
    """
    if arguments.tower_cache is None:
        return
    if BACKENDS[read_backend(arguments)][0] == 3:
        raise RecipeError(f"tower_cache={arguments.tower_cache}: not under ZeRO-3; take zero2 or deepspeed=null")
    keep_tower_states(model, arguments.tower_cache, arguments.tower_cache_gb)


def loss_unit(model: Any, dataset: QuarantiningDataset) -> float:
    """What losses are told in: 1, or for a regression of patches onto words the mean square of what they are to become.

    Raises:
        RecipeError: the model carries a method, which leaves patches out.
    """
    if not isinstance(dataset.dataset, RegionDataset):
        return 1.0
    if model.model.reduces:
        raise RecipeError(
            "objective=regions trains the projector on all patches, and the model has a method: method=none"
        )
    return dataset.dataset.mean_square(model.get_input_embeddings().weight.detach())


def build_trainer(
    arguments: TrainArguments, callbacks: Sequence[TrainerCallback] = (), origin: dict[str, Any] | None = None
) -> LlavaTrainer:
    """The trainer, ready to train. The order of the steps matters, see `load_start` and `start_process_group`.

    Args:
        callbacks: beside the progress report.
        origin: what the run is made from (`origin.py`), stored with every checkpoint.
    """
    disable_progress_bar()  # of loading and saving: several per run, and they tear the log
    check_quantization(arguments)
    check_attention(arguments)
    set_seed(arguments.seed)
    model, processor = load_start(arguments)
    config = model.config
    use_tower_cache(model, arguments)
    if arguments.packing == "turns":
        check_turns(model)
    model = prepare_stage(model, arguments)
    start_process_group(arguments)
    args = training_arguments(arguments)
    with args.main_process_first(local=False, desc="reading the records"):  # one writes the cache
        dataset = build_dataset(arguments, config, processor)
    unit = loss_unit(model, dataset)
    report = ProgressReport(arguments.global_batch)
    trainer = LlavaTrainer(
        model,
        args,
        arguments=arguments,
        base=start_base(arguments),
        processor=processor,
        train_dataset=dataset,
        data_collator=Collator(processor.tokenizer.pad_token_id),
        callbacks=[report, *callbacks],
        origin=origin,
        loss_unit=unit,
    )
    report.trainer = trainer
    if arguments.deepspeed is not None and trainer.accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise RuntimeError(
            f"{arguments.deepspeed} was asked for, but accelerate runs {trainer.accelerator.distributed_type}"
        )
    trainer.remove_callback(PrinterCallback)
    return trainer
