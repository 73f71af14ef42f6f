"""Turn a trained network into the three files that ship: ONNX for prediction, safetensors for torch, the sidecar.

Weights are rounded to float16 first, in both files alike, so that they agree; they are computed with in float32.
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from pydantic import ValidationError
from torch import Tensor, nn

from nkf.costs import count_macs
from nkf.errors import NkfError
from nkf.files import file_sha256, replacing
from nkf.geometry import MEAN_SHAPE
from nkf.models import TorchModel, WithProbabilities, load_model, save_model
from nkf.runtime import OnnxModel
from nkf.weights import ATTENTION, EXPRESSION_KINDS, INPUTS, OUTPUTS, Calibration, Kind, WeightsInfo, find_weights

PARITY_LIMIT: dict[Kind, float] = {  # probabilities; pixels of the crop or picture
    **dict.fromkeys(EXPRESSION_KINDS, 1e-4), "fan": 1e-2, "detector": 2e-2
}  # fmt: skip
_PARITY_BATCHES = (1, 5)
_DETECTOR_SIZE = 256  # several cells at every stride, else the exporter takes the picture's size for fixed
_FIGURES = (
    "n", "accuracy", "accuracy_ci95", "mean_class_accuracy", "recall_by_class", "confusion", "accuracy_leakfree",
    "accuracy_leakfree_ci95", "n_leakfree", "ece", "nll", "brier", "landmarks", "date", "machine",
)  # fmt: skip
_CALIBRATION_FIGURES = (
    "data", "split", "rule", "landmarks", "n", "date", "method", "before", "after", "target_accuracy",
    "at_min_confidence",
)  # fmt: skip
_SMALLEST_HALVED = 256  # initialisers with fewer numbers stay float32: nothing to gain


def export(
    model: str,
    out: Path,
    *,
    name: str | None = None,
    metrics: dict[str, Any] | None = None,
    calibration: Calibration | None = None,
) -> WeightsInfo:
    """Write ``NAME.onnx``, ``NAME.safetensors`` and ``NAME.json``.

    Args:
        model: a run folder, a packaged NAME, or a ``.safetensors`` file with its sidecar beside it.
        out: folder, made when missing.
        name: NAME; by default the one in the sidecar.
        metrics: figures to add to the sidecar.
        calibration: of the probabilities, for the sidecar and the graph; by default that of the sidecar, if any.

    Returns:
        The sidecar.

    Raises:
        NkfError: when the model is unusable, the calibration is of other classes, or ONNX Runtime and torch disagree
            by more than `PARITY_LIMIT`.
    """
    file, info = find_weights(model, (".safetensors",))
    if info.kind not in PARITY_LIMIT:
        what = info.kind.replace("_", " ")
        raise NkfError(f"model {model!r}: is a {what} to start from, there is nothing to predict with it")
    if calibration is not None:
        info = _with_calibration(info, calibration)
    info = info.model_copy(update={"name": name or info.name, "sha256": {}, "metrics": info.metrics | (metrics or {})})
    network = round_to_half(load_model(file, info))
    landmarks_px = torch.from_numpy(info.input_size * MEAN_SHAPE[None]).float()
    inputs = torch.zeros(1, 3, info.input_size, info.input_size), landmarks_px
    info = info.model_copy(update={"macs": count_macs(network, *inputs[: len(INPUTS[info.kind])])})
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{info.name}.onnx"
    with replacing(target) as partial:
        onnx.save(halve_initializers(to_onnx(network, info)), partial)
        difference = parity(network, partial, info)
        if not difference <= PARITY_LIMIT[info.kind]:
            raise NkfError(
                f"{target}: differs from torch by {difference:.2g}, at most {PARITY_LIMIT[info.kind]} is good"
            )
    info = info.model_copy(update={"sha256": {target.name: file_sha256(target)}})
    return save_model(network, out / f"{info.name}.safetensors", info, half=True)


def read_figures(evaluation: Path, model: str) -> dict[str, Any]:
    """Read what a sidecar keeps of an ``evaluation.json``, under the name of data, split and rule.

    Raises:
        NkfError: when it is no such file, or about another model than the one called `model`.
    """
    try:
        content = json.loads(evaluation.read_text())
        title = "{data} {split} {rule}".format_map(content)
        if content["model"] != model:
            raise NkfError(f"{evaluation}: about the model {content['model']!r}, not {model!r}")
        return {title: {key: content[key] for key in _FIGURES}}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise NkfError(f"{evaluation}: not an evaluation.json of nkf ({error})") from error


def read_calibration(file: Path, model: str) -> Calibration:
    """Read what a sidecar keeps of the ``calibration.json`` of the model called `model`.

    Raises:
        NkfError: when it is no such file, or about another model.
    """
    try:
        content = json.loads(file.read_text())
        if content["model"] != model:
            raise NkfError(f"{file}: about the model {content['model']!r}, not {model!r}")
        figures = {key: content[key] for key in _CALIBRATION_FIGURES}
        parameters = {key: content[key] for key in ("temperature", "class_biases", "min_confidence")}
        return Calibration(**parameters, figures=figures)
    except ValidationError as error:
        first = error.errors()[0]
        raise NkfError(f"{file}: not a calibration.json of nkf ({first['loc'][0]}: {first['msg']})") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise NkfError(f"{file}: not a calibration.json of nkf ({error})") from error


def _with_calibration(info: WeightsInfo, calibration: Calibration) -> WeightsInfo:
    classes, biases = len(info.classes), len(calibration.class_biases)
    if not info.tells_expressions:
        raise NkfError(f"model {info.name!r}: gives no probabilities, a calibration is for one that tells expressions")
    if biases not in (0, classes):
        raise NkfError(f"model {info.name!r}: has {classes} classes, the calibration has biases for {biases}")
    return info.model_copy(update={"calibration": calibration})


def round_to_half(network: nn.Module) -> nn.Module:
    """Round every floating-point tensor to a float16 value, in place.

    Raises:
        NkfError: when a value is too large for that.
    """
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
                if not torch.isfinite(tensor).all():
                    raise NkfError(f"tensor {name}: holds values beyond ±65504, which float16 cannot store")
    return network


def to_onnx(network: nn.Module, info: WeightsInfo) -> onnx.ModelProto:
    """Export with free batch size, for detectors free picture size too; names are those of `nkf.weights`."""
    module, outputs = network, OUTPUTS[info.kind]
    if info.tells_expressions:
        module = WithProbabilities(network, info.calibration)
        if module.gives_attention:
            module, outputs = _WithAttention(module), (*outputs, ATTENTION)
    names = INPUTS[info.kind]
    inputs = [torch.from_numpy(array) for array in example_inputs(info, batch=2)[: len(names)]]
    dynamic = {0: torch.export.Dim("batch", min=1)}
    if info.kind == "detector":  # any picture whose sides are multiples of 64
        dynamic |= {2: 64 * torch.export.Dim("rows", min=1), 3: 64 * torch.export.Dim("columns", min=1)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else it regrets at each call that torchvision is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own internals
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs),
            input_names=list(names),
            output_names=list(outputs),
            dynamic_shapes=tuple(dynamic for _ in inputs),
            dynamo=True,
            verbose=False,
            optimize=False,  # it would fold batch norms into weights, which are then no float16 values any more
        )
    assert program is not None
    fold_constants(program.model)
    remove_unused_nodes(program.model)
    return without_traces(program.model_proto)


class _WithAttention(nn.Module):
    """Two outputs in one call, as the exporter wants it."""

    def __init__(self, network: WithProbabilities) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Tensor, landmarks_px: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.with_attention(crops, landmarks_px)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what the exporter notes for debugging: a third of the file, with paths of the machine it ran on."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def halve_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float32 weights as float16 followed by a cast back, which ONNX Runtime folds when it loads."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= _SMALLEST_HALVED:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def parity(network: nn.Module, file: Path, info: WeightsInfo) -> float:
    """Largest absolute difference between torch and an ONNX file, over two batch sizes of random crops.

    The attention counts where the file has it.
    """
    torch_model = TorchModel(network, "cpu", probabilities=info.tells_expressions, calibration=info.calibration)
    onnx_model = OnnxModel(file, "cpu")
    run = torch_model.with_attention if ATTENTION in onnx_model.outputs else torch_model
    differences = []
    for batch in _PARITY_BATCHES:
        inputs = dict(zip(onnx_model.inputs, example_inputs(info, batch), strict=False))
        pairs = zip(onnx_model(**inputs).values(), run(*inputs.values()), strict=True)
        differences += [float(np.abs(ours - theirs).max()) for ours, theirs in pairs]
    return max(differences)


def example_inputs(info: WeightsInfo, batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Random crops (B, 3, S, S), and the mean shape scattered a little (B, 68, 2), always the same."""
    generator = np.random.default_rng(0)
    size = info.input_size if info.kind != "detector" else _DETECTOR_SIZE
    coarse = generator.random((batch, 3, size // 8, size // 8), np.float32)
    crops = coarse.repeat(8, axis=2).repeat(8, axis=3)
    landmarks_px = (MEAN_SHAPE + 0.02 * generator.standard_normal((batch, *MEAN_SHAPE.shape))) * size
    return crops, landmarks_px.astype(np.float32)
