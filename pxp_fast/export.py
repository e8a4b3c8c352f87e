"""Models for other runtimes, each file run and compared with the model before it takes its place."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ExportError
from .files import atomic_write
from .lrp.capture import evaluating

PARITY = 1e-4
_IMAGES, _LOGITS, _BATCH = "images", "logits", "batch"


def export_onnx(
    model: nn.Module, example: Tensor, path: str | os.PathLike[str], *, opset: int | None = None, parity: float = PARITY
) -> float:
    """Write a model as an ONNX file from ``images [batch, C, H, W]`` to ``logits [batch, classes]``.

    Parameters
    ----------
    model
        A classifier, exported as in evaluation.
    example
        Images that it accepts; the batch size of the file is free.
    opset
        The version of ONNX's operators; None: PyTorch's choice.
    parity
        How far logits of ONNX Runtime may be from the model's, relative to the largest of them.

    Returns
    -------
    float
        How far they are, on the example and on one image of it.

    Raises
    ------
    ExportError
        The model cannot be exported or the file computes something else; there is no file then.
    """
    onnx, runtime = _needed("onnx"), _needed("onnxruntime")
    _needed("onnxscript")
    example = _batch(example)
    with atomic_write(path) as temporary, evaluating(model), torch.no_grad():
        with _quietly(), _explained("ONNX"):
            # Weights inside the file: one file is what is renamed.
            torch.onnx.export(
                model,
                (example,),
                temporary,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim(_BATCH)},),
                input_names=[_IMAGES],
                output_names=[_LOGITS],
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
            onnx.checker.check_model(str(temporary), full_check=True)
            options = runtime.SessionOptions()
            options.log_severity_level = 3
            session = runtime.InferenceSession(str(temporary), options, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run([_LOGITS], {_IMAGES: images.cpu().numpy()})[0])

        return _parity(model, run, example, parity, f"ONNX Runtime, of {path},")


def export_torch(model: nn.Module, example: Tensor, path: str | os.PathLike[str], *, parity: float = PARITY) -> float:
    """Write a model as an :class:`torch.export.ExportedProgram` (``.pt2``), for :func:`torch.export.load`.

    Parameters, result and errors as those of :func:`export_onnx`.
    """
    example = _batch(example)
    with atomic_write(path) as temporary, evaluating(model), torch.no_grad():
        with _quietly(), _explained("torch.export"):
            program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim(_BATCH)},))
            content = io.BytesIO()
            torch.export.save(program, content)
            temporary.write_bytes(content.getvalue())
            content.seek(0)
            again = torch.export.load(content).module()
        return _parity(model, again, example, parity, f"the program read again from {path}")


def _batch(example: Tensor) -> Tensor:
    """At least two images: a dimension of one would be taken for a constant."""
    if example.dim() != 4 or not len(example):
        raise ExportError(f"the example is {list(example.shape)}; expected images [N, C, H, W]")
    return example if len(example) > 1 else example.expand(2, *example.shape[1:]).contiguous()


def _parity(model: nn.Module, run: Callable[[Tensor], Tensor], example: Tensor, parity: float, what: str) -> float:
    """The largest difference of logits, relative to the largest logit; raise where that is above `parity`."""
    worst = 0.0
    for images in (example, example[:1]):
        try:
            expected = model(images).double().cpu()
        except Exception as error:  # whatever the model's code raises
            raise ExportError(f"the model does not take {len(images)} images: {_first_line(error)}") from error
        try:
            found = run(images).double().cpu()
        except Exception as error:  # a runtime complains in its own way
            raise ExportError(f"{what} fails for {len(images)} images: {_first_line(error)}") from error
        same = found.shape == expected.shape
        error = float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0) if same else float("inf")
        if not error <= parity:
            raise ExportError(
                f"{what} gives other logits than the model: they differ by {error:.1e} of the largest, and "
                f"{parity:g} is allowed; nothing was written. Export in float32"
            )
        worst = max(worst, error)
    return worst


@contextlib.contextmanager
def _explained(to: str) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # exporters and checkers raise anything at all
        raise ExportError(f"this model cannot be exported to {to}: {_first_line(error)}") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' remarks about their own passes."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # exporters wrap what went wrong in advice to their own developers
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"ONNX files need {name} ({error}); install with: pip install 'pxp_fast[export]'") from error
