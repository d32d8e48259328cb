"""Image-level FPN (i-FPN) over any timm backbone.

timm is imported where a backbone is built: it takes as long to import as the rest of the library.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dynamask.structures import DynaMaskError, first_sentence

STRIDES = (4, 8, 16, 32)
_PLAIN_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)


class BackboneWithFPN(nn.Module):
    """A timm backbone with frozen BatchNorm, and torchvision's FPN: {"0": P2, …, "3": P5, "pool": P6}.

    Args:
        name: a timm model with feature maps at strides 4, 8, 16 and 32.
        out_channels: channels of every pyramid level.
        weights: None for random weights, "timm" to download timm's, or the path of a .safetensors file under timm's
            names (keys of a classifier are ignored; any other difference raises :class:`DynaMaskError`).
        frozen_stride: parameters up to the feature map of this stride are not trained; 0 trains all, 4 (the paper's)
            freezes the stem and the first stage.
    """

    def __init__(self, name: str, out_channels: int, weights: str | Path | None = None, frozen_stride: int = 4) -> None:
        from timm.utils.model import freeze_batch_norm_2d

        super().__init__()
        body = _build_body(name, weights)
        reductions = body.feature_info.reduction()
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise DynaMaskError(
                f"backbone {name} has no feature map at stride {missing}; choose one with strides 4 to 32"
            )
        self.level_indices = [reductions.index(stride) for stride in STRIDES]
        channels = [body.feature_info.channels()[i] for i in self.level_indices]
        self.body = freeze_batch_norm_2d(body)
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels
        _freeze_up_to(self.body, [i["module"] for i in body.feature_info.info if i["reduction"] <= frozen_stride])

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) normalised images → five maps of ``out_channels`` at strides 4, 8, 16, 32, 64."""
        maps = self.body(images)
        return self.fpn(OrderedDict((str(i), maps[level]) for i, level in enumerate(self.level_indices)))


def _build_body(name: str, weights: str | Path | None) -> nn.Module:
    import timm

    if not _PLAIN_NAME.fullmatch(name):  # timm reads "hf-hub:…" and "local-dir:…" from the network or the disk
        raise DynaMaskError(f"backbone {name[:80]!r} is not the plain name of a timm model; give one like resnet50")
    if weights == "timm":
        return _pretrained_body(name)
    try:
        body = timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AssertionError, AttributeError, TypeError, KeyError) as error:
        reason = first_sentence(error)
        raise DynaMaskError(f"backbone {name} is not a timm model with feature maps ({reason})") from error
    if weights is not None:
        _load_backbone_weights(body, Path(weights))
    return body


def _pretrained_body(name: str) -> nn.Module:
    """The body with timm's weights, from the cache or the hub; network errors become :class:`DynaMaskError`."""
    import timm

    try:
        settings = timm.models.get_pretrained_cfg(name)
        hub = settings.hf_hub_id if settings else None
        if hub and not isinstance(huggingface_hub.try_to_load_from_cache(hub, "model.safetensors"), str):
            huggingface_hub.HfApi().model_info(hub, timeout=10)  # fails at once; the download retries for a minute
        return timm.create_model(name, pretrained=True, features_only=True)
    except Exception as error:  # the hub's client raises many kinds of network errors
        raise DynaMaskError(
            f"timm's weights of backbone {name} cannot be downloaded ({first_sentence(error)}); fetch the "
            "model's .safetensors file where there is internet and give its path"
        ) from error


def _load_backbone_weights(body: nn.Module, path: Path) -> None:
    """Load timm-named weights; every tensor of the body must be in the file, with its shape."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DynaMaskError(f"backbone weights {path} cannot be read as safetensors: {error}") from error
    wanted = {key: value for key, value in body.state_dict().items() if not key.endswith("num_batches_tracked")}
    source = {key: key if key in stored else _unflattened(key) for key in wanted}
    unfit = sorted(
        key for key, value in wanted.items() if source[key] not in stored or stored[source[key]].shape != value.shape
    )
    if unfit:
        raise DynaMaskError(
            f"backbone weights {path} do not fit: {len(unfit)} tensors missing or of another shape, first {unfit[0]}"
        )
    counters = {key: value for key, value in body.state_dict().items() if key.endswith("num_batches_tracked")}
    body.load_state_dict({**{key: stored[source[key]] for key in wanted}, **counters})


def _unflattened(key: str) -> str:
    """The name of a tensor in the whole timm model, where its feature extractor flattens "stages.0" to "stages_0"."""
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)


def _freeze_up_to(body: nn.Module, modules: list[str]) -> None:
    """Disable the gradients of all parameters up to and including the last of the named modules."""
    if not modules:
        return
    names = [name for name, _ in body.named_modules()]
    prefix = modules[-1] if modules[-1] in names else modules[-1].replace(".", "_")  # timm flattens some bodies
    end = max(i for i, name in enumerate(names) if name == prefix or name.startswith(prefix + "."))
    frozen = set(names[1 : end + 1])
    for name, module in body.named_modules():
        if name in frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
