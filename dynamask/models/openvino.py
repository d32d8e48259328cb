"""OpenVINO as a back end of inference: it runs the functions of a model that take nearly all of its time.

The model stays the object that it was. Each of its :class:`~dynamask.models.tensor_functions.TensorFunction` is
traced, converted and compiled for the CPU, and replaces the method of the same name. Compiled functions are stored
in the user's cache folder.

OpenVINO (the extra ``openvino``) is imported when a model is first accelerated.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from dynamask.models.tensor_functions import TensorFunction
from dynamask.structures import DynaMaskError, first_sentence

if TYPE_CHECKING:
    import numpy as np
    import openvino

REGIONS_AT_ONCE = 8
"""Number of regions in one run of a function of regions: their intermediate features stay in the processor's cache."""
KEPT_MODELS = 16
"""Number of models whose compiled functions are kept in the cache folder, the last used ones."""


def is_installed() -> bool:
    """Return whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def accelerate(model: nn.Module) -> None:
    """Let OpenVINO run the tensor functions of a model in inference; in training they stay PyTorch's.

    OpenVINO computes in float32, with as many threads as torch has now, and with the weights that the model has now.

    Args:
        model: on the CPU, in evaluation mode, with a method ``tensor_functions()``.

    Raises:
        DynaMaskError: OpenVINO is not installed, the model is on another device, or a function cannot be converted.
    """
    if not is_installed():
        raise DynaMaskError('the back end openvino is not installed; run pip install "dynamask[openvino]"')
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise DynaMaskError(f"the back end openvino computes on the CPU, not on {device}; omit the device")
    folder = _model_folder(model)
    for function in model.tensor_functions():
        vars(function.owner).pop(function.method, None)  # of an earlier call
        stored = None if folder is None else folder / f"{function.name}.bin"
        setattr(function.owner, function.method, CompiledFunction(function, *_compiled(function, stored)))
    if folder is not None:
        _remove_unused(folder)


class CompiledFunction:
    """Replaces a method of a module; outside inference, and for tensors of size zero, it calls the method itself.

    Args:
        function: the method that it replaces.
        compiled: takes the leaves of its arguments and returns those of its result.
        result: the structure of the result.
    """

    def __init__(self, function: TensorFunction, compiled: openvino.CompiledModel, result: TreeSpec) -> None:
        self.original = getattr(function.owner, function.method)
        self.types = [leaf.dtype for leaf in tree_flatten(function.example)[0]]
        self.regions = function.regions
        self.at_once = REGIONS_AT_ONCE if function.regions else None
        self.result = result
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """The value of the method; features of regions are channels-last."""
        leaves, _ = tree_flatten(arguments)
        if torch.is_grad_enabled() or not self._takes(leaves):
            return self.original(*arguments)
        count, step = len(leaves[0]), self.at_once or len(leaves[0])
        outputs: list[Tensor] = []
        with self._lock:
            for start in range(0, count, step):
                parts = self._run([self._to_input(leaf[start : start + step]) for leaf in leaves])
                outputs = outputs or [part.new_empty(count, *part.shape[1:]) for part in parts]
                for output, part in zip(outputs, parts, strict=True):
                    output[start : start + step] = part
        return tree_unflatten([_channels_first(output, self.regions) for output in outputs], self.result)

    def _to_input(self, leaf: Tensor) -> np.ndarray:
        return _channels_last(leaf, self.regions).contiguous().numpy()

    def _takes(self, leaves: list[Any]) -> bool:
        """Return whether tensors have the types of the example, are on the CPU, and not empty."""
        return len(leaves) == len(self.types) and all(
            isinstance(leaf, Tensor) and leaf.dtype == type_ and leaf.device.type == "cpu" and leaf.numel() > 0
            for leaf, type_ in zip(leaves, self.types)
        )

    def _run(self, arrays: list[np.ndarray]) -> list[Tensor]:
        """The outputs, in memory that the next run overwrites."""
        found = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(array) for array in found.values()]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The method of the copied module, which computes in PyTorch."""
        return copy.deepcopy(self.original, memo)


class _Flattened(nn.Module):
    """A function of the leaves of its arguments that returns the leaves of its result."""

    def __init__(self, function: TensorFunction) -> None:
        super().__init__()
        self.owner, self.method, self.regions = function.owner, function.method, function.regions
        example, self.arguments = tree_flatten(function.example)
        self.example = [_channels_last(leaf, self.regions).contiguous() for leaf in example]
        self.result: TreeSpec | None = None

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Leaves of the arguments → leaves of the result; maps of regions have their channels last."""
        inputs = tree_unflatten([_channels_first(leaf, self.regions) for leaf in leaves], self.arguments)
        outputs, self.result = tree_flatten(getattr(self.owner, self.method)(*inputs))
        return tuple(_channels_last(output, self.regions) for output in outputs)


def _channels_last(leaf: Tensor, regions: bool) -> Tensor:
    """Maps of regions (n, C, S, S) as (n, S, S, C), the layout of their features in memory; others as they are."""
    return leaf.permute(0, 2, 3, 1) if regions and leaf.ndim == 4 else leaf


def _channels_first(leaf: Tensor, regions: bool) -> Tensor:
    """The inverse of :func:`_channels_last`."""
    return leaf.permute(0, 3, 1, 2) if regions and leaf.ndim == 4 else leaf


# Compilation


def _properties() -> dict[str, Any]:
    """Settings of OpenVINO's CPU device. Threads are not pinned, so that several processes share the cores."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }


@cache
def _core() -> openvino.Core:
    import openvino

    return openvino.Core()


def _compiled(function: TensorFunction, stored: Path | None) -> tuple[openvino.CompiledModel, TreeSpec]:
    """A function compiled for this processor, and the structure of its result; from the file if it is there."""
    if stored is not None and stored.is_file():
        with contextlib.suppress(Exception):  # a damaged file, or one that this processor cannot use
            structure, _, program = stored.read_bytes().partition(b"\n")
            return _core().import_model(program, "CPU", _properties()), treespec_loads(structure.decode())
    traceable = _Flattened(function).eval()
    try:
        compiled = _core().compile_model(_converted(traceable), "CPU", _properties())
    except Exception as error:  # the tracer and the converter raise many types of errors
        raise DynaMaskError(
            f"OpenVINO cannot convert {function.name} of this model ({first_sentence(error)}); use the back end torch"
        ) from error
    if stored is not None:
        _store(stored, treespec_dumps(traceable.result).encode() + b"\n" + compiled.export_model().getvalue())
    return compiled, traceable.result


def _converted(traceable: _Flattened) -> openvino.Model:
    """OpenVINO's model of a function, with a dynamic number of regions, or of pictures with dynamic sides."""
    import openvino

    example = tuple(traceable.example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that tracing is old, and that it takes the lengths of lists as constants
        traced = torch.jit.trace(traceable, example, check_trace=False)
        dynamic = (0,) if traceable.regions else (0, 2, 3)
        shapes = [[-1 if axis in dynamic else side for axis, side in enumerate(leaf.shape)] for leaf in example]
        return openvino.convert_model(traced, example_input=example, input=shapes)


# Cache


def cache_folder() -> Path:
    """The folder of compiled models: ``dynamask/openvino`` in ``$XDG_CACHE_HOME`` or the system's folder of caches."""
    places = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": "~/Library/Caches"}
    place = os.environ.get("XDG_CACHE_HOME") or places.get(sys.platform) or "~/.cache"
    return Path(place).expanduser() / "dynamask" / "openvino"


def _model_folder(model: nn.Module) -> Path | None:
    """The folder of a model's functions, created unless it is there; None if that is not possible.

    Its name is a hash of the weights, the program, and everything else that compiled functions depend on.
    """
    import openvino

    digest = hashlib.sha256()
    processor = [_core().get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    versions = [openvino.__version__, torch.__version__, torchvision.__version__]
    config = json.dumps(model.config.to_dict(), sort_keys=True)
    digest.update(repr((versions, processor, _properties(), config)).encode())
    package = Path(__file__).resolve().parents[1]
    for path in sorted(path for part in ("models", "ops") for path in (package / part).rglob("*.py")):
        digest.update(path.read_bytes())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().numpy())
    try:
        folder = cache_folder() / digest.hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
    except (OSError, RuntimeError):  # no permission, or no home folder
        return None
    return folder


def _store(path: Path, content: bytes) -> None:
    """Write a file of the cache under another name, and rename it; do nothing if that is not possible."""
    with contextlib.suppress(OSError):
        descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            os.replace(partial, path)
        except OSError:
            os.unlink(partial)
            raise


def _remove_unused(folder: Path) -> None:
    """Delete all but the last used folders of the cache."""
    with contextlib.suppress(OSError):
        others = sorted((path for path in folder.parent.iterdir() if path != folder), key=lambda p: p.stat().st_mtime)
        for path in others[: -(KEPT_MODELS - 1)]:
            shutil.rmtree(path, ignore_errors=True)
