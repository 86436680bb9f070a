"""Adapters as files: Hugging Face PEFT's layout where PEFT knows the method, our own safetensors layout otherwise.

PEFT's: `adapter_config.json`, `adapter_model.safetensors`; for what PEFT lacks nothing of (`peft_layout.peft_lacks`).
Ours: `jpeft_adapter.json`, `jpeft_adapter.safetensors`; everything else that adds leaves to a base.
Full tuning of every weight is a model directory instead, which `transformers` opens.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jpeft.adapters.peft_layout import peft_config, peft_lacks, peft_tensors, read_peft
from jpeft.errors import RunFailed, UserError
from jpeft.files import check_fields, most_bytes_of, read_json_object, write_whole
from jpeft.leaves import Part, fill, named_leaves, num_weights
from jpeft.model.config_fields import MOST_CONFIG_BYTES
from jpeft.model.family import save_model
from jpeft.model.source import ADAPTER_FILES
from jpeft.peft.attaching import attach
from jpeft.peft.interchange import LARGEST_NUMBER
from jpeft.peft.method import Method
from jpeft.peft.methods import METHODS
from jpeft.peft.sites import Site, site_modules, sites
from jpeft.peft.variables import Adapter, Frozen
from jpeft.words import one_line

PEFTS, OURS = ADAPTER_FILES
CONFIGS = (OURS, PEFTS)  # one of them says that a directory holds an adapter
_WEIGHTS = {OURS: "jpeft_adapter.safetensors", PEFTS: "adapter_model.safetensors"}
# Of a tensor: a matrix or a vector, and in ours whatever a module of somebody else's has.
_DIMENSIONS = {_WEIGHTS[OURS]: tuple(range(9)), _WEIGHTS[PEFTS]: (1, 2)}
_OF_ANY_RANK = (".lora_A", ".lora_B", ".lora_E")  # AdaLoRA's: it may leave a map nothing
_BASE_KEY = {OURS: "base_model", PEFTS: "base_model_name_or_path"}


def adapter_files(directory: Path) -> list[Path]:
    """The files that an adapter's directory holds it in, in whichever layout."""
    names = [name for layout in CONFIGS for name in (layout, _WEIGHTS[layout])]
    return [directory / name for name in names if (directory / name).is_file()]


def require_whole(directory: Path, size: int) -> None:
    """Raises `RunFailed`: a finished run's adapter has not the bytes of weights that it was saved with."""
    weights = [directory / name for name in (*_WEIGHTS.values(), "model.safetensors")]
    found = [file.stat().st_size for file in weights if file.is_file()]
    if size not in found:
        what = (
            f"has {found[0]:,} bytes of weights"
            if found
            else "has no weights"
            if directory.is_dir()
            else "is not there"
        )
        raise RunFailed(
            f"{directory}, of a finished run, {what}; {size:,} bytes were saved. Copy it again, or give --overwrite to "
            f"run again from the start; the run's numbers are in {directory.parent / 'result.json'}."
        )


def save_adapter(model: nnx.Module, method: Method, chosen: Sequence[Site], directory: Path, *, base_name: str) -> int:
    """Writes what `method` attached to `model` at the `chosen` sites; returns the bytes of the weights file.

    An adapter that is there already goes, in whichever layout it is.

    Args:
      base_name: name of the base model, for whoever opens the adapter.

    Raises:
      UserError: the directory holds a whole model and this is none, so that whoever opens it would find two.
    """
    directory.mkdir(parents=True, exist_ok=True)
    method = method.settled(chosen)
    if method.trains_base and not jax.tree.leaves(nnx.state(model, nnx.Param)):
        save_model(model, directory, kind=Adapter)
        _remove_adapters(directory, but=None)
        return (directory / "model.safetensors").stat().st_size
    if (whole := next(iter(sorted(directory.glob("model*.safetensors"))), None)) is not None:
        raise UserError(f"{whole} is of a whole model; name another directory for the adapter.")
    leaves = named_leaves(model, Adapter) | named_leaves(model, Frozen)
    method, tensors = method.kept(leaves)
    if peft_lacks(method, chosen, model) is None:
        layout, config = PEFTS, peft_config(model, method, chosen)
        tensors = peft_tensors(model, type(method), tensors)
    else:
        layout = OURS
        options = dataclasses.asdict(method)
        config = {"format_version": 1, "method": method.name, "options": options, "tensors": len(tensors)}
        if shared := _shared(model, tensors):
            config |= {"format_version": 2, "shared": shared}
    file = directory / _WEIGHTS[layout]
    with write_whole(file) as beside:
        save_file({name: np.array(value, order="C") for name, value in tensors.items()}, beside, {"format": "pt"})
    with write_whole(directory / layout) as beside:
        beside.write_text(json.dumps({_BASE_KEY[layout]: base_name, **config}, indent=2) + "\n")
    _remove_adapters(directory, but=layout)
    return file.stat().st_size


def _remove_adapters(directory: Path, *, but: str | None) -> None:
    """Removes adapters of other layouts that were here before: whoever opens the directory must find one."""
    for stale in (layout for layout in CONFIGS if layout != but):
        (directory / stale).unlink(missing_ok=True)
        (directory / _WEIGHTS[stale]).unlink(missing_ok=True)


def _shared(model: nnx.Module, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Of weights that train and that modules share, which have one name among the tensors: each other name, with it."""
    names: dict[int, list[str]] = {}
    for place in site_modules(model):
        for name, value in vars(place.module).items() if not place.in_stack else ():
            if isinstance(value, Adapter):
                names.setdefault(id(value), []).append(f"{place.sites[0].path}/{name}")
    groups = [(next((name for name in group if name in tensors), None), group) for group in names.values()]
    return {name: first for first, group in groups if first is not None for name in group if name not in tensors}


@dataclasses.dataclass(frozen=True)
class Opened:
    """An adapter's directory, read and found to fit a base.

    Attributes:
      model: the base with the adapter attached.
      sites: where it is attached.
      notes: what was rewritten, in sentences: where a file says in another way what the method says.
    """

    model: Any
    method: Method
    sites: list[Site]
    notes: tuple[str, ...]


def load_adapter(
    directory: Path, model: Any, *, report: Callable[[str], None] = lambda line: None
) -> tuple[Any, Method, list[Site]]:
    """`model` with the adapter of a directory attached, its method and sites. Reads both layouts.

    Args:
      report: hears what of its files was rewritten or passed over.

    Raises:
      UserError: no adapter there, one of an unknown kind, or one that does not fit this base.
      RunFailed: a file is damaged or cut short.
    """
    opened = _open(directory, model, lambda method, chosen: attach(model, method, chosen, jax.random.key(0)))
    for note in opened.notes:
        report(f"adapter {directory}: {note}")
    return opened.model, opened.method, opened.sites


def open_adapter(directory: Path, model: nnx.Module) -> Opened:
    """As `load_adapter`, on a base of which no weight is there: `model` has shapes in their place."""
    graphdef, shapes = nnx.split(model)

    def attached(method: Method, chosen: list[Site]) -> nnx.Module:
        key = jax.random.key(0)
        return nnx.eval_shape(lambda state: attach(nnx.merge(graphdef, state), method, chosen, key), shapes)

    return _open(directory, model, attached)


def _open(directory: Path, model: Any, attached: Callable[[Method, list[Site]], Any]) -> Opened:
    method, tensors, notes = read_adapter(directory, model)
    adapted_paths = {name.rpartition("/")[0] for name in tensors}
    by_path = {site.path: site for site in sites(model)}
    strangers = sorted(adapted_paths - set(by_path))
    if strangers:
        raise UserError(
            f"{directory} does not fit this base, which has no {one_line(strangers[0])}; give the base that it was "
            "trained on."
        )
    chosen = [site for path, site in by_path.items() if path in adapted_paths]
    adapted = attached(method, chosen)
    unread = set(tensors)

    def read(name: str, shape: tuple[int, ...], part: Part) -> np.ndarray:
        if name not in tensors or tensors[name].shape != shape:
            found = f"shape {tensors[name].shape}" if name in tensors else "nothing"
            raise UserError(
                f"{directory} does not fit this base: {name} should have shape {shape}, the file has {found}."
            )
        unread.discard(name)
        return tensors[name][part]

    fill(adapted, Adapter, read, np.float32)
    read_as_well = {id(tensor) for name, tensor in tensors.items() if name not in unread}  # by another module's name
    unread = {name for name in unread if id(tensors[name]) not in read_as_well}
    if unread:
        raise UserError(
            f"{directory} holds {one_line(sorted(unread)[0])}, which {method.name} has no place for; copy it again."
        )
    return Opened(adapted, method, chosen, notes)


def layout_of(directory: Path) -> str | None:
    """The file of `CONFIGS` that a directory has; None where it holds no adapter."""
    return next((name for name in CONFIGS if (directory / name).is_file()), None)


def stored_base_name(directory: Path) -> str | None:
    """The base that an adapter's directory names, or None. Raises `RunFailed`: its config is damaged."""
    layout = layout_of(directory)
    name = None if layout is None else _read_config(directory / layout).get(_BASE_KEY[layout])
    return name if isinstance(name, str) and name else None


def read_adapter(directory: Path, model: nnx.Module) -> tuple[Method, dict[str, np.ndarray], tuple[str, ...]]:
    """The method of a directory's adapter, its leaves by name and what was rewritten; not yet held against the base.

    Args:
      model: the base, or shapes in its place.

    Raises:
      UserError: no adapter there, or one of an unknown kind.
      RunFailed: a file is damaged or cut short.
    """
    layout = layout_of(directory)
    if layout is None:
        if (directory / "model.safetensors").is_file():
            raise UserError(
                f"{directory} is a whole model, the result of full tuning, and no adapter; open it by jpeft.load, or "
                "name it as model.name."
            )
        raise UserError(
            f"{directory} holds no adapter: neither {OURS} nor {PEFTS} is there; name a run or an adapter's directory."
        )
    config, tensors = _read_config(directory / layout), _read_tensors(directory / _WEIGHTS[layout], model)
    if layout == PEFTS:
        return read_peft(config, tensors, model, source=str(directory))
    method = _our_method(config, tensors, directory)
    if config.get("tensors") not in (None, len(tensors)):  # older versions did not say how many
        raise RunFailed(
            f"{directory / _WEIGHTS[layout]} holds {len(tensors):,} tensors, and {layout} says {config['tensors']}: "
            "one of the two was changed; copy both files again."
        )
    for name, first in (config.get("shared") or {}).items():
        if not isinstance(first, str) or first not in tensors or name in tensors:
            raise RunFailed(f"{directory / layout} is damaged: {one_line(name)} is no name of another weight's.")
        tensors[name] = tensors[first]
    return method, tensors, ()


def _our_method(config: dict[str, Any], tensors: dict[str, np.ndarray], directory: Path) -> Method:
    """The method that `jpeft_adapter.json` describes, of the sizes that the tensors have."""
    source = f"{directory / OURS}"
    kinds: Any = {"format_version": int, "method": str, "options": dict, "shared": dict, "tensors": int}
    check_fields(config, kinds, source, error=RunFailed)
    if config.get("format_version") not in (1, 2):  # 2: some weights have several names
        version = config.get("format_version")
        raise UserError(f"{directory} is of format version {version}; this jpeft reads versions 1 and 2.")
    factory, options = METHODS.get(config.get("method") or ""), config.get("options")
    if factory is None or options is None:
        raise RunFailed(f"{source} is damaged: it names no method of {', '.join(METHODS)}, or lacks its options.")
    kinds = {field.name: field.type for field in dataclasses.fields(factory)}
    check_fields(options, kinds, source, error=RunFailed)
    strange = [name for name, value in options.items() if name not in kinds or value is None]
    if strange:
        raise RunFailed(f"{source} is damaged: {factory.name} has no option {strange[0][:60]!r} of that value.")
    if any(isinstance(value, int | float) and abs(value) > LARGEST_NUMBER for value in options.values()):
        raise RunFailed(f"{source} is damaged: an option is larger than {LARGEST_NUMBER:g}.")
    method = factory(**options)
    for size, (leaf, axis) in method.sizes.items():  # before room is made for what a config asks for
        for name, value in tensors.items():
            found = value.shape[axis] if value.ndim else "no dimensions"
            if name.rpartition("/")[2] == leaf and found != getattr(method, size):
                raise RunFailed(
                    f"{source} has {size} = {getattr(method, size)}, and {one_line(name)} in its weights {found}; copy "
                    "both files again."
                )
    return method


def _read_config(path: Path) -> dict[str, Any]:
    return read_json_object(path, error=RunFailed, most_bytes=MOST_CONFIG_BYTES)


def _read_tensors(path: Path, model: nnx.Module) -> dict[str, np.ndarray]:
    """All tensors of an adapter's file, in float32.

    Raises:
      UserError: there is none, or it is far larger than a base of this size has adapters.
      RunFailed: it is damaged, or holds what no adapter does.
    """
    pickled = path.with_suffix(".bin")
    if not path.exists() and pickled.is_file():
        raise UserError(
            f"{path.parent} keeps its weights in {pickled.name}, a pickle, which jpeft does not open; save it "
            "again as safetensors: PeftModel.from_pretrained(base, directory).save_pretrained(other)."
        )
    if not path.is_file():  # nor a pipe, reading which would wait for ever
        raise UserError(f"{path.parent} has no {path.name} beside its config; copy the whole directory.")
    most = most_bytes_of(num_weights(model))
    if path.stat().st_size > most:  # by its size alone: a file with holes takes no room on a disk, and all in memory
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; expected {most:,} at most for this base.")
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                shape = file.get_slice(name).get_shape()
                may_be_empty = path.name == _WEIGHTS[PEFTS] and name.endswith(_OF_ANY_RANK)
                if len(shape) not in _DIMENSIONS[path.name] or (0 in shape and not may_be_empty):
                    dimensions = f"shape {tuple(shape)}" if len(shape) < 5 else f"{len(shape)} dimensions"
                    raise RunFailed(
                        f"{path}: {one_line(name)} has {dimensions}; expected {min(_DIMENSIONS[path.name])} to "
                        f"{max(_DIMENSIONS[path.name])}, none of them empty."
                    )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise RunFailed(f"{path} is damaged or cut short ({error}); copy it again.") from None
    except (TypeError, KeyError, AttributeError, OSError) as error:  # a dtype that NumPy does not have
        raise RunFailed(f"{path} cannot be read ({str(error)[:120] or type(error).__name__}).") from None
    for name, value in tensors.items():
        if not jax.numpy.issubdtype(value.dtype, np.floating):
            raise RunFailed(f"{path}: {one_line(name)} is of {value.dtype}; expected floating-point numbers.")
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and refused
            tensors[name] = value.astype(np.float32)
        if not np.isfinite(tensors[name]).all():
            raise RunFailed(
                f"{path}: {one_line(name)} holds NaN or infinity, so every answer would be no number; its training may "
                "have diverged, or the file is damaged."
            )
    if not tensors:
        raise RunFailed(f"{path} holds no tensors; copy it again.")
    return tensors
