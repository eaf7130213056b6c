"""Whether a text names a folder or a repository on the Hugging Face Hub: one answer for every command.

A name on the Hub is NAMESPACE/NAME and nothing that could be a path of one's own. What is missing here is never looked up
there under its folder's name: whoever owns that name would supply the weights.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAME = re.compile(r"(?P<namespace>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)")
_LONGEST = 96  # characters of a name on the Hub

# What people and this project call their own folders, and how names end there.
_OWN_FOLDERS = re.compile(
    r"(runs?|checkpoints?|ckpts?|playground|configs?|data|datasets|models?|weights|outputs?|results?|experiments?|exp|logs?"
    r"|tmp|work|home|mnt|scratch)",
    re.IGNORECASE,
)
_OWN_NAMES = re.compile(
    r"(merged|checkpoint-\d+|global_step\d+|.*\.(safetensors|json|jsonl|ya?ml|bin|pth?|ckpt|gguf|unfinished))",
    re.IGNORECASE,
)


def is_hub_name(text: str | os.PathLike[str]) -> bool:
    """Whether a text is to be looked up on the Hub.

    False where something of that name is here; where it is no NAMESPACE/NAME; and where it looks like a path: the first
    part is a folder here or is called as people call their own (runs, checkpoints, ...), or the last part is a file's
    name or one that training gives (merged, checkpoint-500).
    """
    text = os.fspath(text)
    match = _NAME.fullmatch(text)
    if match is None or len(text) > _LONGEST or ".." in text or "--" in text or text.endswith((".", "-")):
        return False
    if _OWN_FOLDERS.fullmatch(match["namespace"]) or _OWN_NAMES.fullmatch(match["name"]):
        return False
    return not Path(text).exists() and not Path(match["namespace"]).is_dir()


def is_missing(text: str | os.PathLike[str]) -> bool:
    """Whether a text is a path, and nothing is there."""
    return not Path(text).exists() and not is_hub_name(text)


def why_missing(text: str | os.PathLike[str]) -> str:
    """What to say of such a text, behind its name: that it does not exist, and how a name on the Hub would look."""
    hub = "a name on the Hub is NAMESPACE/NAME"
    if _NAME.fullmatch(os.fspath(text)):
        hub = "as it looks like a path of your own, the Hub is not asked for it"
    return f"does not exist, seen from {Path.cwd()}; {hub}"
