"""Boxes ``xyxy``: overlap, removal of duplicates, turned pictures, and how well found boxes match true ones."""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating]  # (N, 4)

NMS_IOU = 0.3


def box_iou(first: Boxes, second: Boxes) -> NDArray[np.floating]:
    """Intersection over union of (N, 4) with (M, 4) boxes: (N, M)."""
    overlap = box_overlap(first, second)
    union = box_area(first)[:, None] + box_area(second)[None] - overlap
    result: NDArray[np.floating] = overlap / np.maximum(union, 1e-9)
    return result


def box_overlap(first: Boxes, second: Boxes) -> NDArray[np.floating]:
    """Area that (N, 4) share with (M, 4) boxes: (N, M)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    area: NDArray[np.floating] = np.prod(np.maximum(high - low, 0), axis=-1)
    return area


def box_area(boxes: Boxes) -> NDArray[np.floating]:
    """Areas (N,); 0 of boxes whose sides are swapped."""
    area: NDArray[np.floating] = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=-1)
    return area


def non_maximum_suppression(boxes_xyxy: Boxes, scores: NDArray[np.floating], iou: float = NMS_IOU) -> list[int]:
    """Indices of the boxes to keep: from the best score down, those that overlap no kept box by more than `iou`."""
    waiting = np.argsort(-scores, kind="stable")
    kept = []
    while len(waiting):
        best, others = waiting[0], waiting[1:]
        kept.append(int(best))
        waiting = others[box_iou(boxes_xyxy[best][None], boxes_xyxy[others])[0] <= iou]
    return kept


def turn_back(points: NDArray[np.float64], quarter_turns: int, size_hw: tuple[int, ...]) -> NDArray[np.float64]:
    """Map points (..., 2) of an image that `np.rot90` has turned to the image before the turns.

    Args:
        points: pixels of the turned image.
        quarter_turns: counter-clockwise.
        size_hw: height and width of the turned image.
    """
    height, width = size_hw
    for _ in range(quarter_turns):
        points = np.stack([height - points[..., 1], points[..., 0]], axis=-1)
        height, width = width, height
    return points


def match_boxes(
    found: Boxes, scores: NDArray[np.floating], truth: Boxes, iou: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match found boxes (N, 4), the best score first, each to the true box (M, 4) that it overlaps most of those left.

    Returns:
        (N,) found boxes that hit a true one, and (M,) true boxes that were hit; a true box is hit once.
    """
    right, hit = np.zeros(len(found), bool), np.zeros(len(truth), bool)
    overlaps = box_iou(found, truth)
    for k in np.argsort(-scores, kind="stable"):
        free = np.where(hit, -1.0, overlaps[k])
        if len(free) and free.max() >= iou:
            right[k] = hit[free.argmax()] = True
    return right, hit


def average_precision(right: NDArray[np.bool_], scores: NDArray[np.floating], num_truth: int) -> float:
    """Area under the curve of precision over recall, of all found boxes of a set of pictures."""
    if not len(right) or not num_truth:
        return 0.0
    right = right[np.argsort(-scores, kind="stable")]
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[right].sum() / num_truth)
