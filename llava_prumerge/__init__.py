"""LLaVA-1.5 with visual-token reduction: PruMerge, PruMerge+ and the methods they are compared with.

Importing this package is cheap: it loads neither torch nor transformers. It only arranges that, once those are imported,
transformers' Auto classes know `llava_prumerge` checkpoints and torchvision works beside a CPU build of torch.
"""

from llava_prumerge import lazy_imports

__version__ = "0.1.0"

lazy_imports.install()
