"""Prompts as people have them: files of boxes and points, markups of a viewer, label maps."""

from medsam_tune.inference.prompt_files.read import kind_of_prompts, read_prompts
from medsam_tune.inference.prompt_files.write import objects_of, objects_to_fill, write_prompts
from medsam_tune.lazy import import_when_named

import_when_named(__name__)

__all__ = ["kind_of_prompts", "objects_of", "objects_to_fill", "read_prompts", "write_prompts"]
