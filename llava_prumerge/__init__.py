"""LLaVA-1.5 with visual-token reduction: PruMerge, PruMerge+ and the methods they are compared with.

Importing this package is cheap: it loads neither torch nor transformers. `load_model` and the commands need nothing
more. To use transformers' Auto classes on our checkpoints, say so once:

    import llava_prumerge
    llava_prumerge.register()
"""

import importlib

from llava_prumerge import lazy_imports

__version__ = "0.1.0"
__url__ = "https://github.com/llava-prumerge/llava-prumerge"

lazy_imports.install()


def register() -> None:
    """Make transformers' Auto classes know our model: its configuration, its class and its checkpoints' key names.

    It imports transformers' Llava. Calling it again changes nothing.
    """
    importlib.import_module("llava_prumerge.model.modeling")  # it registers itself when it is imported
