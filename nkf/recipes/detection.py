"""Face detector: random parts of composed scenes; focal loss on face centres, overlap of boxes, distance of points."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf.boxes import average_precision, match_boxes, non_maximum_suppression
from nkf.config import TrainConfig
from nkf.data.dataset import load_crops
from nkf.data.pack import Pack, is_held_out
from nkf.data.sampling import epoch_order
from nkf.data.scene_pool import ScenePool, load_pool, read_pictures
from nkf.data.scenes import Faces, SceneMaker
from nkf.errors import NkfError
from nkf.models import create_model
from nkf.models.detector import cell_centres, decode
from nkf.preprocess import add_noise, change_colors, erase, random_similarities, to_float, warp
from nkf.progress import Progress, no_progress
from nkf.recipes.common import autocast, describe, load_weights
from nkf.weights import Kind, WeightsInfo

SCENE_SIZE = 320  # side in pixels of the scenes that training crops are cut from
VALIDATION_SCENES = 400
WHOLE_SIZE = 128  # side of the packs' pictures
VALIDATION_PICTURES = 12  # one background in so many serves validation alone
MATCH_IOU = 0.4
_LEAST_SCORE = 0.05  # of boxes that count in validation
_FACES_PER_PACK = 6000
_SMALL_PICTURE, _FEWER = 64, 5000  # packs of grey 48 px pictures give fewer faces
_SMALLEST_FACE = 10.0  # shorter side in pixels of the crop; smaller ones are neither faces nor background
_LEAST_VISIBLE = 0.4  # share of a face inside the crop; of others likewise
_VALIDATION_BATCH = 16
_MIRROR_POINTS = (1, 0, 2, 4, 3)
_SIGMA = 0.09  # of the Gaussian around a face's centre, in sides of its box
_REGRESSED = 0.3  # cells with more heat learn box and points


class DetectionRecipe:
    """Face detector: random parts of scenes composed of the packs' faces over pictures without faces.

    One face in ten (by the hash of its pixels) and one background in `VALIDATION_PICTURES` are kept for validation.
    """

    kind: Kind = "detector"

    def __init__(self, config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> None:
        self.config = config
        self.device = device
        self.packs = [Pack(path) for path in config.data]
        folder = config.backgrounds[0] / "cache"
        key = _key(self.packs, config.backgrounds)

        @cache
        def makers() -> tuple[SceneMaker, SceneMaker]:
            return scene_makers(self.packs, config.backgrounds, progress)

        self.valid = load_pool(lambda: makers()[1], folder, VALIDATION_SCENES, 1, f"valid {key}", progress)
        self.train = load_pool(lambda: makers()[0], folder, config.scenes, config.seed, f"train {key}", progress)
        self.plain = None
        if config.plain_scenes:
            self.plain = load_pool(
                lambda: makers()[0], folder, config.plain_scenes, config.seed, f"train {key}", progress, plain=True
            )
        self.num_train = len(self.train.images) + config.plain_scenes
        self.order = epoch_order(self.num_train, config.seed)

    def create(self) -> nn.Module:
        model = create_model(self.kind, {})
        if self.config.start is not None:
            load_weights(self.config.start, model)
        return model.to(self.device)

    def network(self, model: nn.Module) -> nn.Module:
        return model

    def batch(self, rows: NDArray[np.int64], generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        with_faces = rows[rows < len(self.train.images)]
        parts = [self._batch(self.train, with_faces)]
        if self.plain is not None:
            parts.append(self._batch(self.plain, rows[rows >= len(self.train.images)] - len(self.train.images)))
        images, boxes, points = (torch.cat(columns) for columns in zip(*parts, strict=True))
        images, boxes, points = self._augment(images, boxes, points, generator)
        return images.contiguous(memory_format=torch.channels_last), boxes, points

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, boxes, points = batch
        with autocast(self.config, self.device):
            raw_maps = model.raw_maps(images)  # type: ignore[operator]
        return detection_loss(raw_maps, boxes, points, images.shape[-1])

    def _batch(self, pool: ScenePool, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor, Tensor]:
        parts = (np.array(array[rows]) for array in (pool.images, pool.boxes, pool.points))
        images, boxes, points = (torch.from_numpy(part).to(self.device) for part in parts)
        return to_float(images), boxes, points

    def _augment(
        self, images: Tensor, boxes: Tensor, points: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, size = self.config.augment, self.config.crop_size
        side = images.shape[-1]
        # Larger crops than scenes show these enlarged, not the repeated edges around them.
        base = torch.tensor([side / 2, side / 2, min(side, size), 0.0], device=self.device).expand(len(images), 4)
        matrices, mirrored = random_similarities(base, size, config, generator)
        images = warp(images, matrices, size)
        boxes = _move(boxes.view(*boxes.shape[:2], 2, 2), matrices)
        boxes = torch.cat([boxes.amin(dim=-2), boxes.amax(dim=-2)], dim=-1)  # mirrored ones have their sides swapped
        points = _move(points, matrices)
        points = torch.where(mirrored[:, None, None, None], points[:, :, _MIRROR_POINTS], points)
        images = change_colors(images, config, generator)
        images = erase(images, config, generator)
        images = add_noise(images, config.noise, config.noise_probability, generator)
        return images.clamp(0, 1), boxes, points

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        scores, right, truths = self.found_boxes(model)
        precision, sure = average_precision(right, scores, truths), scores > 0.5
        return {
            "score": precision,
            "average_precision": precision,
            "recall": float((right & sure).sum() / max(truths, 1)),
            "false_per_scene": float((~right & sure).sum() / len(self.valid.images)),
        }

    @torch.no_grad()
    def found_boxes(self, model: nn.Module) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
        """Scores of all boxes found in the validation scenes, whether each hits a face, and the number of faces."""
        scores, right, truths = [], [], 0
        for start in range(0, len(self.valid.images), _VALIDATION_BATCH):
            images, boxes, _ = self._batch(self.valid, slice(start, start + _VALIDATION_BATCH))
            detections, side = model(images), images.shape[-1]
            found_scores = detections.scores.flatten(1).cpu().double().numpy()
            found_boxes = detections.boxes_px.flatten(1, 2).clamp(0, side).cpu().double().numpy()
            for confidence, found, truth in zip(found_scores, found_boxes, boxes.cpu().numpy(), strict=True):
                likely = confidence > _LEAST_SCORE
                confidence, found = confidence[likely], found[likely]
                kept = non_maximum_suppression(found, confidence)
                truth = truth[np.isfinite(truth[:, 0])].clip(0, side)
                good, _ = match_boxes(found[kept], confidence[kept], truth, MATCH_IOU)
                scores.append(confidence[kept])
                right.append(good)
                truths += len(truth)
        return np.concatenate(scores), np.concatenate(right), truths

    def info(self, model: nn.Module) -> WeightsInfo:
        return describe(self.config, self.kind, model, self.packs)


def scene_makers(
    packs: Sequence[Pack], backgrounds: Sequence[Path], progress: Progress = no_progress
) -> tuple[SceneMaker, SceneMaker]:
    """Read faces and pictures, and split them into what trains and what validates."""
    train: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
    valid: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
    for pack in packs:
        crops = load_crops(pack, "whole", WHOLE_SIZE, progress)
        rows = pack.rows("train")[crops.found[pack.rows("train")]]
        kept_out = is_held_out(pack.column("pixels_md5")[rows])
        most = _FEWER if len(rows) and pack.image(int(rows[0])).shape[0] < _SMALL_PICTURE else _FACES_PER_PACK
        for part, chosen in ((train, rows[~kept_out]), (valid, rows[kept_out])):
            chosen = chosen[:: max(1, len(chosen) // most)][:most]
            part.append((crops.images[chosen], crops.landmarks_px[chosen]))
    pictures = [picture for folder in backgrounds for picture in read_pictures(folder)]
    makers = []
    for part, images in (
        (train, [p for n, p in enumerate(pictures) if n % VALIDATION_PICTURES]),
        (valid, pictures[::VALIDATION_PICTURES]),
    ):
        faces = Faces(*(np.concatenate(columns) for columns in zip(*part, strict=True)))
        if not len(faces.images) or not images:
            raise NkfError(f"{packs[0].path}: too few faces or backgrounds to keep some out for validation")
        makers.append(SceneMaker(faces, images, (SCENE_SIZE, SCENE_SIZE)))
    return makers[0], makers[1]


def _key(packs: Sequence[Pack], backgrounds: Sequence[Path]) -> str:
    """What pools of scenes depend on, beside the maker's own settings."""
    files = sorted((file.name, file.stat().st_size) for folder in backgrounds for file in folder.glob("*.*"))
    content = [[pack.manifest["rows_sha256"] for pack in packs], files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def detection_loss(raw_maps: Tensor, boxes: Tensor, points: Tensor, size: int) -> Tensor:
    """Loss of a batch, per face.

    Args:
        raw_maps: (B, 15, h, w) of `FaceDetector.raw_maps`.
        boxes: (B, M, 4) xyxy pixels; NaN where there is no face.
        points: (B, M, P, 2) pixels.
        size: side of the pictures in pixels.
    """
    height, width = raw_maps.shape[2:]
    detections, logits = decode(raw_maps), raw_maps[:, 0]
    real = boxes.isfinite().all(dim=-1)  # (B, M)
    boxes, points = boxes.nan_to_num(0.0), points.nan_to_num(0.0)
    shown = boxes.clamp(0, size)  # what can be seen of them is to be found
    sides = shown[..., 2:] - shown[..., :2]
    visible = sides.prod(dim=-1) / (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1).clamp(min=1e-6)
    wanted = real & (visible > _LEAST_VISIBLE) & (sides.amin(dim=-1) > _SMALLEST_FACE)
    middle = (shown[..., :2] + shown[..., 2:]) / 2
    cells = cell_centres(height, width, boxes.device)  # (h, w, 2)
    # The Gaussian's centre is a cell's centre, so that each face has one cell of heat 1.
    cell = size / width
    peak = ((middle / cell).floor().clamp(0, width - 1) + 0.5) * cell
    sigma = (sides * _SIGMA).clamp(min=0.4 * cell)
    offset = (cells - peak[:, :, None, None]) / sigma[:, :, None, None]  # (B, M, h, w, 2)
    heat = torch.exp(-0.5 * offset.square().sum(dim=-1)) * wanted[:, :, None, None]
    heat, owner = heat.max(dim=1)  # (B, h, w)
    inside = ((cells > shown[:, :, None, None, :2]) & (cells < shown[:, :, None, None, 2:])).all(dim=-1)
    ignored = (inside & (real & ~wanted)[:, :, None, None]).any(dim=1) & (heat < 0.3)
    faces = wanted.sum().clamp(min=1)

    probability = logits.sigmoid()
    positive = heat > 0.999
    hit = F.softplus(-logits) * (1 - probability).square() * positive
    miss = F.softplus(logits) * probability.square() * (1 - heat).pow(4) * ~positive * ~ignored
    score_loss = (hit.sum() + miss.sum()) / faces

    batch, row, column = (heat > _REGRESSED).nonzero(as_tuple=True)
    which = owner[batch, row, column]
    weight = heat[batch, row, column]
    weight = weight / weight.sum().clamp(min=1)
    target, found = shown[batch, which], detections.boxes_px[batch, row, column]
    box_loss = (weight * (1 - generalized_iou(found, target))).sum()
    scale = (target[:, 2:] - target[:, :2]).mean(dim=-1)[:, None, None]
    distance = (detections.points_px[batch, row, column] - points[batch, which]) / scale
    point_loss = (weight[:, None] * distance.norm(dim=-1)).sum() / distance.shape[1]
    return score_loss + 2 * box_loss + 2 * point_loss


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Rezatofighi et al., CVPR 2019, arXiv 1902.09630: (N, 4) and (N, 4) boxes to (N,), -1 to 1."""
    sides = [(box[:, 2:] - box[:, :2]).clamp(min=0) for box in (first, second)]
    overlap = (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])).clamp(min=0)
    around = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    shared, hull = overlap.prod(dim=-1), around.prod(dim=-1).clamp(min=1e-6)
    union = (sides[0].prod(dim=-1) + sides[1].prod(dim=-1) - shared).clamp(min=1e-6)
    return shared / union - (hull - union) / hull


def _move(points: Tensor, matrices: Tensor) -> Tensor:
    """Apply (B, 2, 3) matrices to (B, M, P, 2) points."""
    linear, offset = matrices[:, None, :, :2], matrices[:, None, None, :, 2]
    return points @ linear.transpose(-1, -2) + offset
