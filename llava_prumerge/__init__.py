"""LLaVA-1.5 with visual-token reduction: PruMerge, PruMerge+ and the methods they are compared with.

    import llava_prumerge

    model, processor = llava_prumerge.load_model("llava-hf/llava-1.5-7b-hf", reduction="visionzip")
    answer = llava_prumerge.ask(model, processor, "What is on the table?", "photo.jpg")
    print(answer.text, answer.images[0].kept, "of", answer.images[0].full, answer.seconds)

    seen = llava_prumerge.inspect_image(model, processor, "photo.jpg")    # kept patches, attention map
    for name, method in llava_prumerge.list_methods().items():            # what else there is
        print(name, method.summary)

`attach` puts a method on a live model of transformers, `detach` takes it off. To load our checkpoints with transformers' Auto
classes, say once:

    llava_prumerge.register()

Importing this package is cheap: torch and transformers are loaded when a name is first used. The same from a console:
`llava-prumerge --help`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__url__ = "https://github.com/llava-prumerge/llava-prumerge"

_WHERE = {  # name: the module it comes from; __init__.pyi says the same to type checkers and editors
    "Answer": "inference.asking",
    "ImageTokens": "inference.asking",
    "InputError": "ground.errors",
    "MethodInfo": "methods.listing",
    "ask": "inference.asking",
    "assemble": "model.assembling",
    "attach": "model.attach",
    "detach": "model.attach",
    "inspect_image": "inference.asking",
    "list_methods": "methods.listing",
    "load_model": "model.loading",
    "load_reader": "model.reading",
}
__all__ = [*_WHERE, "register"]


def register() -> None:
    """Make transformers' Auto classes know our models: their configurations, classes and checkpoints' key names.

    It imports transformers' Llava. Calling it again changes nothing.
    """
    importlib.import_module("llava_prumerge.model.modeling")  # it registers itself when it is imported


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
