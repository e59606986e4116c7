"""A stand-in for a GPU: tensors that say they are on the device ``gpu:0`` and compute on the CPU.

Code that asks a tensor for its device takes the branches that it would take on a GPU, with the true values, so that a
machine without a GPU can test what a GPU would do, and count what it would cost::

    potential.to(DEVICE)
    with counting() as counts:
        evaluate(potential, graph.on(DEVICE))
    assert not counts.clashes and counts.kernels < 700

How it works: PyTorch's key for third-party devices gets the name ``gpu``. A tensor of it (:class:`GPUTensor`) holds a
CPU tensor; each operation on it, below automatic differentiation, comes to :func:`_execute`, is noted, and computed on
the tensors inside. Operations of other libraries than ATen run their implementation for CUDA, as on a GPU.

Not as on a GPU: random numbers are those of the CPU; what is pickled comes back on the CPU; autocast changes nothing;
operations that change the size of a tensor in place are refused.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_leaves, tree_map

import mdl_physpre

NAME = "gpu"
PACKAGE = str(Path(mdl_physpre.__file__).parent) + "/"
NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "is_pinned",
    "is_same_size", "_local_scalar_dense",
}  # fmt: skip
WAITS = {
    "_local_scalar_dense": "a number is read", "is_nonzero": "a number is read", "equal": "a number is read",
    "nonzero": "the size of the result is read", "masked_select": "the size of the result is read",
    "_unique2": "the size of the result is read", "unique_dim": "the size of the result is read",
    "unique_consecutive": "the size of the result is read", "bincount": "the size of the result is read",
    "_linalg_check_errors": "an error code is read", "_linalg_eigh": "an error code is read",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
NO_CPU_SCALARS = {
    "index_select", "index_add", "index_add_", "index_copy", "index_copy_", "gather", "scatter", "scatter_",
    "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "cat", "stack", "embedding", "mm", "bmm",
}  # fmt: skip
_active: list[Counts] = []


@dataclass(eq=False)
class Counts:
    """What the device was asked to do. The counters' keys are (what, where): the lines of the package that asked.

    kernels : operations that launch at least one kernel.
    syncs : times that the host waits for the device.
    uploads : copies from the host to the device.
    clashes : operations on tensors of both devices, at which a GPU raises.
    names : kernels by name.
    """

    kernels: int = 0
    names: Counter[str] = field(default_factory=Counter)
    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)
    uploads: Counter[tuple[str, str]] = field(default_factory=Counter)
    clashes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def reset(self) -> None:
        """Count from zero."""
        self.__init__()  # type: ignore[misc]

    @property
    def waited(self) -> int:
        """How often the host waited."""
        return self.syncs.total()


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count what is done on the device meanwhile."""
    counts = Counts()
    _active.append(counts)
    try:
        yield counts
    finally:
        _active.remove(counts)


class GPUTensor(Tensor):
    """A tensor on the device; ``inner`` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> GPUTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(op, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def data_ptr(self) -> int:
        raise RuntimeError(f"the address of a tensor on {DEVICE} means nothing to code on the host")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = self.detach().clone()
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made)
            memo[id(self)] = made.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"GPUTensor({self.inner!r})"


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _where() -> str:
    """The innermost lines of the package that led here."""
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < 2:
        if frame.f_code.co_filename.startswith(PACKAGE):
            lines.append(f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines) or "outside the package, or backward"


def _note(name: str, op: Any, args: tuple, kwargs: dict, here: list[Tensor], host: list[Tensor], leaves: bool) -> None:
    copies = name in ("copy_", "_to_copy")
    down = (name == "_to_copy" and bool(here) and leaves) or (name == "copy_" and not isinstance(args[0], GPUTensor))
    up = copies and bool(host) and not down and (name == "_to_copy" or host[0].dim() > 0)
    wait = WAITS.get(name) or ("the result is copied to the host" if down else None)
    indices = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)] if name in INDEXING else []
    if any(t.dtype in (torch.bool, torch.uint8) for t in indices):
        value = args[2] if len(args) > 2 else None
        filled = isinstance(value, Tensor) and not isinstance(value, GPUTensor) and value.numel() == 1
        wait = None if filled else "the size of a mask is read"
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        wait = "the size of the result is read"
    clash = False
    if here and host and not copies:
        strange = [t for t in host if t.dim() > 0 or name in NO_CPU_SCALARS]
        if name in INDEXING and isinstance(args[0], GPUTensor):
            up = any(not isinstance(t, GPUTensor) for t in indices)
            strange = [t for t in strange if not any(t is i for i in indices)]
        clash = bool(strange)
    view = torch.Tag.inplace_view in op.tags or any(
        r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns
    )
    kernel = not (view or name in NO_KERNEL or down or (copies and up))
    where = _where() if wait or up or clash else ""
    for counts in _active:
        if kernel:
            counts.kernels += 1
            counts.names[name] += 1
        if wait:
            counts.syncs[f"{name}: {wait}", where] += 1
        if up:
            counts.uploads[name, where] += 1
        if clash:
            shapes = " and ".join(f"{t.device} {tuple(t.shape)}" for t in here + host)
            counts.clashes[f"{name} of {shapes}", where] += 1


def _execute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation with tensors of the device, or that makes one."""
    name = op._schema.name.split("::")[-1]
    if op.namespace not in ("aten", "prims"):
        return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **kwargs)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = [t for t in tensors if isinstance(t, GPUTensor)]
    host = [t for t in tensors if not isinstance(t, GPUTensor)]
    device = kwargs.get("device")
    leaves = device is not None and not _is_gpu(device)
    if _active:
        _note(name, op, args, kwargs, here, host, leaves)
    known = {id(t.inner): t for t in here} | {id(t): t for t in host}  # type: ignore[attr-defined]

    def inside(value: Any) -> Any:
        if isinstance(value, GPUTensor):
            return value.inner
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    def outside(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            if known[id(value)].shape != value.shape:
                raise NotImplementedError(f"{op} changes the size of a tensor in place, which {NAME} cannot")
            return known[id(value)]
        return value if leaves else GPUTensor(value)

    kwargs.pop("pin_memory", None)
    if torch.Tag.inplace_view in op.tags:  # the tensor outside must look as the one inside
        with torch._C._DisableTorchDispatch():
            op(*args, **kwargs)
    return tree_map(outside, op(*tree_map(inside, args), **tree_map(inside, kwargs)))


class _Module(registration._DummyBackendModule):
    """``torch.gpu``: what PyTorch asks the module of a device."""

    device = staticmethod(contextlib.nullcontext)
    get_rng_state = staticmethod(lambda device=NAME: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=NAME: torch.set_rng_state(state))
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16, torch.float32])
    synchronize = empty_cache = reset_peak_memory_stats = set_device = staticmethod(lambda *_: None)
    max_memory_allocated = staticmethod(lambda *_: 0)


class _AlsoPlainGenerators(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, torch._C.Generator)


class _Generator(torch._C.Generator, metaclass=_AlsoPlainGenerators):
    """A generator of random numbers of either device; those of the GPU draw as those of the CPU."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu" if _is_gpu(device) else device)
        made._place = torch.device(device)  # type: ignore[attr-defined]
        return made

    device = property(lambda self: self._place)


def _register() -> list[torch.library.Library]:
    registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(_execute, "PrivateUse1")  # what C++ asks for below the tensors' own dispatch, such as memory
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    known = torch.ops.aten
    direct = [known.copy_.default, known.silu_backward.default]  # composed of others where a device has none of its own
    # PyTorch would make these of an empty tensor that is resized
    for packet in (known.arange, known.linspace, known.eye, known.randperm):
        direct += [getattr(packet, o) for o in packet.overloads() if "out" not in o and "Tensor" not in o]
    for op in direct:

        def kernel(*args: Any, _op: Any = op, **kwargs: Any) -> Any:
            return _execute(_op, *args, **kwargs)

        aten.impl(op, kernel, "PrivateUse1")
    _foreach_utils._foreach_supported_types.append(GPUTensor)
    torch.Generator = _Generator  # type: ignore[misc]
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign,assignment]
    return [every, aten]


def _check_gradients() -> None:
    """PyTorch makes threads for the devices that it knows when the first gradient of a process is taken."""
    try:
        torch.ones(1, device=DEVICE, requires_grad=True).sum().backward()
    except RuntimeError as error:
        raise RuntimeError(
            "a gradient was taken before tests.helpers.gpu_stand_in was imported, and now none can be taken on the "
            "stand-in; take none while a test module is imported"
        ) from error


_libraries = _register()  # as long as they live
DEVICE = torch.device(NAME, 0)
_check_gradients()
