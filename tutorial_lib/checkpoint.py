"""Checkpoints: one file, written completely or not at all, from which a run continues with the same bits."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from truly_sparse.arguments import require, shown
from truly_sparse.errors import SparseTrainingError

from .project import check_path


class CheckpointError(SparseTrainingError, RuntimeError):
    """A checkpoint is missing or damaged, or belongs to another version or model."""


NAME = b"dst-checkpoint "
VERSION = b"1\n"
DIGEST = hashlib.sha256
FIELDS = ("parts", "random")


def save_checkpoint(path: str | Path, **parts: Any) -> None:
    """Write all that a run needs to continue into one file, with the states of all random generators.

    The new file replaces the old one in a single step, so a crash leaves one of the two complete.

    Args:
        path: file to write.
        parts: by name, objects with a ``state_dict`` (model, optimizer, scheduler, :class:`DynamicSparsity`, …), or
            plain values (numbers, texts, tensors, lists and dictionaries of these).

    Raises:
        CheckpointError: the file cannot be written, or a value has a type that cannot be loaded safely.
    """
    require(Path(path).name not in ("", ".."), "path", str(path), "give the name of a file")
    path = check_path("path", path)
    states = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
    payload = _pack({"parts": states, "random": _random_state()}, path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(NAME + VERSION + DIGEST(payload).digest() + payload)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:  # Ctrl-C as well
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CheckpointError(f"cannot write {path} ({error}); choose another place, or free some space") from error


def load_checkpoint(path: str | Path, **parts: Any) -> dict[str, Any]:
    """Load a file of :func:`save_checkpoint` into the given objects: into all of them or, after any error, into none.

    Args:
        path: the file.
        parts: by the names under which they were saved, objects with a ``load_state_dict``; models are loaded first.

    Returns:
        The other contents of the file, by name. Random generators are set to their saved states.

    Raises:
        CheckpointError: no such file; not a checkpoint, of another version, truncated or altered; a part that the file
            does not hold; or a part of another model.
    """
    path = Path(path)
    content = read_checkpoint(path)
    states = content["parts"]
    parts = dict(sorted(parts.items(), key=lambda named: not isinstance(named[1], torch.nn.Module)))
    for name, part in parts.items():
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise CheckpointError(f"{name}={shown(part)} cannot take a state; give an object with load_state_dict")
    missing = [name for name in parts if name not in states]
    if missing:
        raise CheckpointError(f"{path} holds {', '.join(states)}, but not {', '.join(missing)}; leave these out")
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    random_before = _random_state()
    name = "the state of the random generators"
    try:
        _set_random_state(content["random"])
        for name, part in parts.items():
            _load(part, states[name])
    except BaseException as error:
        _set_random_state(random_before)
        for other, part in parts.items():
            part.load_state_dict(before[other])
        if not isinstance(error, Exception):
            raise
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(
            f"{name!r} in {path} was saved from another one ({reason}); build it as it was when it was saved"
        ) from error
    return {name: state for name, state in states.items() if name not in parts}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the verified contents of a file of :func:`save_checkpoint`, without loading them into objects.

    Returns:
        ``parts``, by the names under which they were saved, and the states of the ``random`` generators.

    Raises:
        CheckpointError: no such file; not a checkpoint, of another version, truncated or altered.
    """
    path = check_path("path", path)
    return _unpack(_payload(path), path)


def _payload(path: Path) -> bytes:
    """Return the bytes after the header, once their digest is verified."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error}); give the path of a checkpoint") from error
    if not content.startswith(NAME):
        raise CheckpointError(f"{path} is not a checkpoint of this library, or its beginning is damaged")
    line, _, rest = content[len(NAME) :].partition(b"\n")
    if line + b"\n" != VERSION:
        raise CheckpointError(f"{path} has version {line[:20]!r}, this library reads {VERSION.strip()!r}; train anew")
    size = DIGEST().digest_size
    if DIGEST(rest[size:]).digest() != rest[:size]:
        raise CheckpointError(f"{path} is damaged (cut short or altered); delete it and start anew, or use a copy")
    return rest[size:]


def _pack(content: dict[str, Any], path: Path) -> bytes:
    packed, parts = io.BytesIO(), content["parts"]
    try:
        torch.save(content, packed)
        _unpack(packed.getvalue(), path)  # fails here, while the old file still exists
    except Exception as error:
        for name in parts if len(parts) > 1 else ():
            _pack(content | {"parts": {name: parts[name]}}, path)  # raises for the part that cannot be saved
        raise CheckpointError(
            f"{path} would hold {', '.join(f'{name}={shown(part)}' for name, part in parts.items())}, which cannot be "
            "loaded safely; save objects with a state_dict, numbers, texts, tensors, lists and dictionaries of these"
        ) from error
    return packed.getvalue()


def _unpack(payload: bytes, path: Path) -> dict[str, Any]:
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's message is not repeated, because it recommends unsafe loading.
        raise CheckpointError(
            f"{path} cannot be read safely by this version of torch; start anew, or use the version that wrote it"
        ) from error
    if not isinstance(content, dict) or {key: type(content.get(key)) for key in FIELDS} != dict.fromkeys(FIELDS, dict):
        raise CheckpointError(f"{path} was not written by save_checkpoint; start anew, or use a checkpoint that was")
    return content


def _load(part: Any, state: dict[str, Any]) -> None:
    if isinstance(part, torch.optim.Optimizer):
        _check_optimizer_state(part, state)
    part.load_state_dict(state)
    if isinstance(part, torch.optim.Optimizer):
        _lay_out_like_parameters(part)


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give optimizer state the memory format of its weight, as fused optimizers require."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Check shapes, which ``Optimizer.load_state_dict`` does not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(saved, parameters, strict=True):
        for key, value in state["state"].get(number, {}).items():
            if torch.is_tensor(value) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{key} of shape {tuple(value.shape)} for a parameter {tuple(parameter.shape)}")


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = cast(Any, np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # another machine may have other GPUs
        torch.cuda.set_rng_state_all(state["cuda"])
