"""What is trained: data, network, loss and validation of each task, behind one small interface for the trainer."""

from collections.abc import Callable

import torch

from nkf.config import TrainConfig
from nkf.progress import Progress, no_progress
from nkf.recipes.common import Recipe
from nkf.recipes.contrastive import ContrastiveRecipe
from nkf.recipes.detection import DetectionRecipe
from nkf.recipes.expression import ExpressionRecipe
from nkf.recipes.landmark_trunk import LandmarkTrunkRecipe
from nkf.recipes.landmarks import LandmarkRecipe

__all__ = [
    "ContrastiveRecipe",
    "DetectionRecipe",
    "ExpressionRecipe",
    "LandmarkRecipe",
    "LandmarkTrunkRecipe",
    "Recipe",
    "create_recipe",
]

RECIPES: dict[str, Callable[[TrainConfig, torch.device, Progress], Recipe]] = {
    "expression": ExpressionRecipe,
    "landmarks": LandmarkRecipe,
    "detection": DetectionRecipe,
    "contrastive": ContrastiveRecipe,
    "landmark_trunk": LandmarkTrunkRecipe,
}


def create_recipe(config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> Recipe:
    """Load the data of a run and return its task."""
    return RECIPES[config.task](config, device, progress)
