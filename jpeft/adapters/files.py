"""Saving and loading adapters, in one of two layouts.

- Hugging Face PEFT's: `adapter_config.json` and `adapter_model.safetensors`, where PEFT's format can hold the adapter
  (`peft_layout.peft_lacks`).
- jpeft's own: `jpeft_adapter.json` and `jpeft_adapter.safetensors`, for all other adapters.

Full tuning of every weight is saved as a model directory that `transformers` opens.
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

from jpeft.adapters.peft_layout import peft_config, peft_lacks, peft_tensors, peft_unstored, read_peft
from jpeft.errors import RunFailed, UserError
from jpeft.files import check_fields, most_bytes_of, read_json_object, write_whole
from jpeft.leaves import Part, fill, named_leaves, num_weights, stacked_leaves
from jpeft.model.config_fields import MOST_CONFIG_BYTES
from jpeft.model.family import save_model
from jpeft.model.source import ADAPTER_FILES
from jpeft.peft.attaching import attach
from jpeft.peft.interchange import LARGEST_NUMBER
from jpeft.peft.made_by import trained_places
from jpeft.peft.method import Method
from jpeft.peft.methods import METHODS, require_registered
from jpeft.peft.sites import Site, leaf_at, site_modules, sites
from jpeft.peft.variables import Adapter, Frozen
from jpeft.words import counted, listed, one_line, short

PEFTS, OURS = ADAPTER_FILES
CONFIGS = (OURS, PEFTS)  # the config files of the two layouts; an adapter directory has one of them
_WEIGHTS = {OURS: "jpeft_adapter.safetensors", PEFTS: "adapter_model.safetensors"}
# Accepted numbers of dimensions of a tensor; in our layout users' modules may have any.
_DIMENSIONS = {_WEIGHTS[OURS]: tuple(range(9)), _WEIGHTS[PEFTS]: (1, 2)}
_MAY_BE_EMPTY = (".lora_A", ".lora_B", ".lora_E")  # AdaLoRA may prune all ranks of a map
_OPTIONS = "jpeft_options"  # in the metadata of the weights: the options of `PeftLayout.peft_unstored`, as JSON
_MOST_LOOKED_AT, _MOST_NAMED = 1_000, 3  # subdirectories, where a directory holds no adapter
_BASE_KEY = {OURS: "base_model", PEFTS: "base_model_name_or_path"}


def adapter_files(directory: Path) -> list[Path]:
    """The config and weights files of the adapter in a directory, in either layout."""
    names = [name for layout in CONFIGS for name in (layout, _WEIGHTS[layout])]
    return [directory / name for name in names if (directory / name).is_file()]


def require_whole(directory: Path, size: int) -> None:
    """Checks the size of the weights file of a finished run's adapter.

    Args:
      directory: the adapter's directory.
      size: the bytes that were saved.

    Raises:
      RunFailed: no weights file has that size.
    """
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
    """Saves the adapter of a model, replacing an adapter of either layout that is in the directory.

    Args:
      model: the model with the adapter attached.
      method: the method that attached it.
      chosen: the sites where it is attached.
      directory: where to save; created if missing.
      base_name: name of the base model, stored in the adapter's config.

    Returns:
      The size of the weights file in bytes.

    Raises:
      UserError: the directory holds a whole model, and the adapter would be a second thing to load from it; or
        `METHODS` has another method under this one's name, or none.
    """
    is_whole_model = method.trains_base and not jax.tree.leaves(nnx.state(model, nnx.Param))
    if not is_whole_model:
        require_registered(method)
    directory.mkdir(parents=True, exist_ok=True)
    method = method.settled(chosen)
    if is_whole_model:
        save_model(model, directory, kind=Adapter)
        _remove_adapters(directory, except_layout=None)
        return (directory / "model.safetensors").stat().st_size
    if (whole := next(iter(sorted(directory.glob("model*.safetensors"))), None)) is not None:
        raise UserError(f"{whole} is of a whole model; name another directory for the adapter.")
    leaves = named_leaves(model, Adapter) | named_leaves(model, Frozen)
    method, tensors = method.to_save(leaves)
    metadata = {"format": "pt"}
    if peft_lacks(method, chosen, model) is None:
        layout, config = PEFTS, peft_config(model, method, chosen)
        tensors = peft_tensors(model, type(method), tensors)
        if unstored := peft_unstored(method):
            metadata[_OPTIONS] = json.dumps(unstored)
    else:
        layout = OURS
        options = dataclasses.asdict(method)
        config = {"format_version": 1, "method": method.name, "options": options, "tensors": len(tensors)}
        if shared := _shared(model, tensors):
            config |= {"format_version": 2, "shared": shared}
    file = directory / _WEIGHTS[layout]
    with write_whole(file) as beside:
        save_file({name: _in_floats(name, value) for name, value in tensors.items()}, beside, metadata)
    with write_whole(directory / layout) as beside:
        beside.write_text(json.dumps({_BASE_KEY[layout]: base_name, **config}, indent=2) + "\n")
    _remove_adapters(directory, except_layout=layout)
    return file.stat().st_size


def _in_floats(name: str, value: np.ndarray) -> np.ndarray:
    """A leaf as files hold it; frozen booleans and whole numbers get their dtype back when they are loaded."""
    value = np.array(value, order="C")
    if jax.numpy.issubdtype(value.dtype, np.floating):
        return value
    wide = value.astype(np.float32)
    if (wide.astype(value.dtype) != value).any():
        raise UserError(
            f"{name} holds {value.dtype} numbers that the floats of an adapter's file cannot hold; keep them below "
            "2^24, or leave them out in `to_save` where attaching makes the same again."
        )
    return wide


def _remove_adapters(directory: Path, *, except_layout: str | None) -> None:
    """Removes the files of adapters in other layouts, so that a directory never holds two adapters."""
    for stale in (layout for layout in CONFIGS if layout != except_layout):
        (directory / stale).unlink(missing_ok=True)
        (directory / _WEIGHTS[stale]).unlink(missing_ok=True)


def _shared(model: nnx.Module, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Maps the further names of trainable weights that modules share to the name that the tensor is saved under."""
    names: dict[int, list[str]] = {}
    for place in site_modules(model):
        for name, value in vars(place.module).items() if not place.in_stack else ():
            if isinstance(value, Adapter):
                names.setdefault(id(value), []).append(leaf_at(place.sites[0].path, name))
    groups = [(next((name for name in group if name in tensors), None), group) for group in names.values()]
    return {name: first for first, group in groups if first is not None for name in group if name not in tensors}


@dataclasses.dataclass(frozen=True)
class Opened:
    """An adapter that was read from a directory and fits its base.

    Attributes:
      model: the base with the adapter attached.
      method: the method with its options.
      sites: the sites where it is attached.
      notes: sentences on what was rewritten or dropped when converting it to the method's terms.
    """

    model: Any
    method: Method
    sites: list[Site]
    notes: tuple[str, ...]


def load_adapter(
    directory: Path, model: Any, *, report: Callable[[str], None] = lambda line: None
) -> tuple[Any, Method, list[Site]]:
    """Loads an adapter of either layout onto its base.

    Args:
      directory: the adapter's directory.
      model: the base; it is not changed.
      report: called with a line on each thing that was rewritten or ignored.

    Returns:
      The model with the adapter attached, the method, and the sites where it is attached.

    Raises:
      UserError: the directory holds no adapter, one of an unknown kind, or one that does not fit this base; or the
        model has an adapter already.
      RunFailed: a file is damaged or cut short.
    """
    opened = _open(directory, model, lambda method, chosen: attach(model, method, chosen, jax.random.key(0)))
    for note in opened.notes:
        report(f"adapter {directory}: {note}")
    return opened.model, opened.method, opened.sites


def open_adapter(directory: Path, model: nnx.Module) -> Opened:
    """Like `load_adapter`, for a base that holds shapes instead of arrays."""
    graphdef, shapes = nnx.split(model)

    def attached(method: Method, chosen: list[Site]) -> nnx.Module:
        key = jax.random.key(0)
        return nnx.eval_shape(lambda state: attach(nnx.merge(graphdef, state), method, chosen, key), shapes)

    return _open(directory, model, attached)


def _open(directory: Path, model: Any, attached: Callable[[Method, list[Site]], Any]) -> Opened:
    if trained := trained_places(model):
        raise UserError(
            f"{directory} needs a base without an adapter, and the model has one at {trained[0].sites[0].told}; load "
            "the adapter onto the base itself, or merge the other one first."
        )
    method, tensors, notes = read_adapter(directory, model)
    adapted_paths = {name.rpartition("/")[0] for name in tensors}
    by_path = {site.path: site for site in sites(model)}
    unknown = sorted(adapted_paths - set(by_path))
    if unknown:
        raise UserError(
            f"{directory} does not fit this base, which has no {one_line(unknown[0])}; give the base that it was "
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
    # A method may leave frozen leaves out of the file, where attaching makes the same ones again.
    held = {leaf.path for leaf in stacked_leaves(adapted, Frozen) if not tensors.keys().isdisjoint(leaf.names)}
    fill(adapted, nnx.All(Frozen, lambda path, _: path in held), read, None)
    read_under_other_name = {id(tensor) for name, tensor in tensors.items() if name not in unread}  # shared weights
    unread = {name for name in unread if id(tensors[name]) not in read_under_other_name}
    if unread:
        raise UserError(
            f"{directory} holds {one_line(sorted(unread)[0])}, which {method.name} has no place for; copy it again."
        )
    return Opened(adapted, method, chosen, notes)


def layout_of(directory: Path) -> str | None:
    """The layout of the adapter in a directory, as the name of its config file; None if there is no adapter."""
    return next((name for name in CONFIGS if (directory / name).is_file()), None)


def adapters_below(directory: Path) -> str | None:
    """Names the subdirectories that hold an adapter or a run's, for messages; None if there are none.

    PEFT's `save_pretrained` writes one for each adapter that has a name.
    """
    try:
        inner = sorted(directory.iterdir())[:_MOST_LOOKED_AT]
        names = [short(one.name, quoted=False) for one in inner if layout_of(one) or layout_of(one / "adapter")]
    except OSError:  # it is not there, or not readable
        return None
    if len(names) < 2:
        return f"its subdirectory {names[0]} does: name it" if names else None
    more = len(names) - _MOST_NAMED
    shown = [*names[:_MOST_NAMED], *([counted(more, "other")] if more > 0 else [])]
    return f"its subdirectories {listed(shown)} do: name one of them"


def stored_base_name(directory: Path) -> str | None:
    """The name of the base in an adapter's config; None if it has none. Raises `RunFailed` if the config is damaged."""
    layout = layout_of(directory)
    name = None if layout is None else _read_config(directory / layout).get(_BASE_KEY[layout])
    return name if isinstance(name, str) and name else None


def read_adapter(directory: Path, model: nnx.Module) -> tuple[Method, dict[str, np.ndarray], tuple[str, ...]]:
    """Reads an adapter without attaching it; its leaves are not compared with the shapes of the base yet.

    Args:
      directory: the adapter's directory.
      model: the base, which may hold shapes instead of arrays.

    Returns:
      The method, the leaves by name, and notes on what was rewritten.

    Raises:
      UserError: the directory holds no adapter, or one of an unknown kind.
      RunFailed: a file is damaged or cut short.
    """
    layout = layout_of(directory)
    if layout is None:
        if (directory / "model.safetensors").is_file():
            raise UserError(
                f"{directory} is a whole model, the result of full tuning, and no adapter; open it by jpeft.load, or "
                "give it as model.name."
            )
        instead = adapters_below(directory) or "name a run or an adapter's directory"
        raise UserError(f"{directory} holds no adapter: neither {OURS} nor {PEFTS} is there; {instead}.")
    config, tensors = _read_config(directory / layout), _read_tensors(directory / _WEIGHTS[layout], model)
    if layout == PEFTS:
        method, tensors, notes = read_peft(config, tensors, model, source=str(directory))
        return _with_unstored(method, directory / _WEIGHTS[layout]), tensors, notes
    method = _our_method(config, tensors, directory)
    if config.get("tensors") not in (None, len(tensors)):  # older versions did not write the number
        raise RunFailed(
            f"{directory / _WEIGHTS[layout]} holds {len(tensors):,} tensors, and {layout} says {config['tensors']}: "
            "one of the two was changed; copy both files again."
        )
    for name, first in (config.get("shared") or {}).items():
        if not isinstance(first, str) or first not in tensors or name in tensors:
            raise RunFailed(
                f"{directory / layout} is damaged: {one_line(name)} in `shared` names no other tensor of the file."
            )
        tensors[name] = tensors[first]
    return method, tensors, ()


def _our_method(config: dict[str, Any], tensors: dict[str, np.ndarray], directory: Path) -> Method:
    """Builds the method from `jpeft_adapter.json`, after checking its sizes against the tensors."""
    source = f"{directory / OURS}"
    kinds: Any = {"format_version": int, "method": str, "options": dict, "shared": dict, "tensors": int}
    check_fields(config, kinds, source, error=RunFailed)
    if config.get("format_version") not in (1, 2):  # version 2 adds names of shared weights
        version = config.get("format_version")
        raise UserError(f"{directory} is of format version {version}; this jpeft reads versions 1 and 2.")
    factory, options = METHODS.get(config.get("method") or ""), config.get("options")
    if factory is None or options is None:
        raise RunFailed(
            f"{source} is damaged: it names none of the methods {', '.join(METHODS)}, or lacks its options."
        )
    kinds = {field.name: field.type for field in dataclasses.fields(factory)}
    check_fields(options, kinds, source, error=RunFailed)
    unknown = [name for name, value in options.items() if name not in kinds or value is None]
    if unknown:
        raise RunFailed(f"{source} is damaged: {factory.name} has no option {unknown[0][:60]!r} of that value.")
    if any(isinstance(value, int | float) and abs(value) > LARGEST_NUMBER for value in options.values()):
        raise RunFailed(f"{source} is damaged: an option is larger than {LARGEST_NUMBER:g}.")
    method = factory(**options)
    for size, (leaf, axis) in method.sizes.items():  # before memory is allocated for the sizes in the config
        for name, value in tensors.items():
            found = value.shape[axis] if value.ndim else "no dimensions"
            if name.rpartition("/")[2] == leaf and found != getattr(method, size):
                raise RunFailed(
                    f"{source} has {size} = {getattr(method, size)}, and {one_line(name)} in its weights {found}; copy "
                    "both files again."
                )
    return method


def _with_unstored(method: Method, weights: Path) -> Method:
    """The method with the options that `save_adapter` put into the metadata of a weights file in PEFT's layout."""
    with safe_open(weights, framework="numpy") as file:
        text = (file.metadata() or {}).get(_OPTIONS, "{}")
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        options = None
    known = peft_unstored(method, all_of_them=True)
    if not isinstance(options, dict) or not all(
        name in known and type(value) in (int, float) and abs(value) <= LARGEST_NUMBER
        for name, value in options.items()
    ):
        raise RunFailed(f"{weights} is damaged: {_OPTIONS} in its metadata is {one_line(text)}; copy it again.")
    return dataclasses.replace(method, **options)


def _read_config(path: Path) -> dict[str, Any]:
    return read_json_object(path, error=RunFailed, most_bytes=MOST_CONFIG_BYTES)


def _read_tensors(path: Path, model: nnx.Module) -> dict[str, np.ndarray]:
    """Reads all tensors of an adapter's weights file as float32.

    Args:
      path: the weights file.
      model: the base, whose size limits that of the file.

    Raises:
      UserError: the file is missing, or too large for an adapter of this base.
      RunFailed: it is damaged, or has tensors that no adapter has.
    """
    pickled = path.with_suffix(".bin")
    if not path.exists() and pickled.is_file():
        raise UserError(
            f"{path.parent} keeps its weights in {pickled.name}, a pickle, which jpeft does not open; save it "
            "again as safetensors: PeftModel.from_pretrained(base, directory).save_pretrained(other)."
        )
    if not path.is_file():  # reading a pipe would block
        raise UserError(f"{path.parent} has no {path.name} beside its config; copy the whole directory.")
    most = most_bytes_of(num_weights(model))
    if path.stat().st_size > most:  # a sparse file takes little space on disk, but its full size in memory
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; expected {most:,} at most for this base.")
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                shape = file.get_slice(name).get_shape()
                may_be_empty = path.name == _WEIGHTS[PEFTS] and name.endswith(_MAY_BE_EMPTY)
                if len(shape) not in _DIMENSIONS[path.name] or (0 in shape and not may_be_empty):
                    dimensions = f"shape {tuple(shape)}" if len(shape) < 5 else f"{len(shape)} dimensions"
                    raise RunFailed(
                        f"{path}: {one_line(name)} has {dimensions}; expected {min(_DIMENSIONS[path.name])} to "
                        f"{max(_DIMENSIONS[path.name])}, none of them empty."
                    )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise RunFailed(f"{path} is damaged or cut short ({error}); copy it again.") from None
    except (TypeError, KeyError, AttributeError, OSError) as error:  # such as a dtype that NumPy lacks
        raise RunFailed(f"{path} cannot be read ({str(error)[:120] or type(error).__name__}).") from None
    for name, value in tensors.items():
        if not jax.numpy.issubdtype(value.dtype, np.floating):
            raise RunFailed(f"{path}: {one_line(name)} is of {value.dtype}; expected floating-point numbers.")
        with np.errstate(over="ignore"):  # overflow gives infinity, which is refused below
            tensors[name] = value.astype(np.float32)
        if not np.isfinite(tensors[name]).all():
            raise RunFailed(
                f"{path}: {one_line(name)} holds NaN or infinity; its training may have diverged, or the file is "
                "damaged."
            )
    if not tensors:
        raise RunFailed(f"{path} holds no tensors; copy it again.")
    return tensors
