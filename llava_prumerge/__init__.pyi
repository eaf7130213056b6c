from llava_prumerge.ground.errors import InputError as InputError
from llava_prumerge.inference.asking import Answer as Answer
from llava_prumerge.inference.asking import ImageTokens as ImageTokens
from llava_prumerge.inference.asking import ask as ask
from llava_prumerge.inference.asking import inspect_image as inspect_image
from llava_prumerge.methods.listing import MethodInfo as MethodInfo
from llava_prumerge.methods.listing import list_methods as list_methods
from llava_prumerge.model.assembling import assemble as assemble
from llava_prumerge.model.attach import attach as attach
from llava_prumerge.model.attach import detach as detach
from llava_prumerge.model.loading import load_model as load_model
from llava_prumerge.model.reading import load_reader as load_reader

__version__: str
__url__: str

def register() -> None: ...
