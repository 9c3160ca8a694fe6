"""A device that this machine does not have, to see without a GPU what one would refuse.

Its tensors say that they are there, and lie in the memory of the CPU. As on a GPU, an operation on tensors of two
places is an error (but for a CPU scalar of no dimensions, and indices of the CPU), a generator of the CPU gives no
noise there, and what waits for the device to say a number is counted.
"""

import functools

import torch
from torch._decomp import decompositions
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from hf_vrae.modeling import generation_vrae, kernels, modeling_latent, transformer, vrnn

NAME = "other"
MOVES = ("aten::_to_copy", "aten::copy_")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")
HAS_FLOAT64 = True  # Apple's has not
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2")
waits = []  # names of the operations for whose result the host waited


class _Backend:
    """What torch and accelerate ask of a backend."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_device = manual_seed = manual_seed_all = synchronize = staticmethod(lambda *args: None)
    set_rng_state = staticmethod(lambda *args: None)


class There(torch.Tensor):
    """A tensor of the device; `here` is what the CPU holds of it."""

    @staticmethod
    def __new__(cls, here: torch.Tensor):
        if here.dtype == torch.float64 and not HAS_FLOAT64:
            raise TypeError(f"The device {NAME} has no float64.")
        sizes = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        there = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), dtype=here.dtype, device=torch.device(NAME, 0), **sizes
        )
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    # To save a model these are asked for past the dispatcher.
    def untyped_storage(self):
        return self.here.untyped_storage()

    def data_ptr(self):
        return self.here.data_ptr()

    def __reduce_ex__(self, protocol):
        return self.here.__reduce_ex__(protocol)

    def tolist(self):
        waits.append("tolist")
        return self.here.tolist()

    def numpy(self, **options):
        raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy


class SecondDevice(TorchDispatchMode):
    """In here tensors can be made on, and moved to, the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def is_there(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func, args, kwargs):
    name, target = func._schema.name, kwargs.get("device")
    tensors = []
    args_here, kwargs_here = _here(args, tensors), {key: _here(value, tensors) for key, value in kwargs.items()}
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    goes_there = bool(there) if target is None else is_there(target)
    if goes_there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of the device {NAME}, found one of the CPU.")
    if there and name not in MOVES:
        _check_one_place(func, args, [tensor for tensor in tensors if not isinstance(tensor, There)])
    if there and _waits(name, args, target):
        waits.append(name)
    if is_there(target):
        kwargs_here["device"] = torch.device("cpu")
    out = func(*args_here, **kwargs_here)
    if there and torch.Tag.inplace_view in func.tags:
        return _resized(func, args, kwargs)
    if not goes_there:
        return out
    own = {id(tensor.here): tensor for tensor in there}  # what was changed in place is the same tensor still
    return _there(out, own)


def _here(value, tensors: list):
    """An argument as the CPU takes it; the tensors in it are noted. (pytree's maps took half of the time.)"""
    if isinstance(value, (list, tuple)):
        return type(value)([_here(part, tensors) for part in value])
    if not isinstance(value, torch.Tensor):
        return value
    tensors.append(value)
    return value.here if isinstance(value, There) else value


def _there(out, own: dict):
    if isinstance(out, (list, tuple)):
        return type(out)([_there(part, own) for part in out])
    if not isinstance(out, torch.Tensor):
        return out
    return own[id(out)] if id(out) in own else There(out)


def _check_one_place(func, args, of_the_cpu):
    if func._schema.name in INDEXING and isinstance(args[0], There):
        of_the_cpu = [tensor for tensor in of_the_cpu if tensor.is_floating_point()]
    shapes = [list(tensor.shape) for tensor in of_the_cpu if tensor.dim() > 0]
    if shapes:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {shapes} on the CPU.")


def _waits(name, args, target) -> bool:
    if name == "aten::_to_copy":
        return target is not None and not is_there(target)
    if name == "aten::copy_":
        return not isinstance(args[0], There)
    by_mask = name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
    return by_mask or name in WAITS


def _resized(func, args, kwargs):
    """`squeeze_` and the like: what the tensor says of its own sizes changes too."""
    with no_dispatch():
        before = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)
    return args[0]


def _step_by_step(fused, whole, packed):
    """A recurrent layer there as its plain steps: the fused ones are written for known devices."""

    @functools.wraps(fused)
    def layer(*args):
        if not isinstance(args[0], There):
            return fused(*args)
        return (packed if isinstance(args[1], torch.Tensor) and isinstance(args[3], (list, tuple)) else whole)(*args)

    return layer


def _is_plain(linear) -> bool:
    """Weights there are of another type, which would pass for quantized ones: our kernels would never be seen."""
    hooked = linear._forward_hooks or linear._forward_pre_hooks
    return _is_plain_here(linear) or (type(linear) is torch.nn.Linear and type(linear.weight) is There and not hooked)


_is_plain_here = kernels.is_plain
for _module in (kernels, modeling_latent, generation_vrae, transformer, vrnn):
    _module.is_plain = _is_plain
_setup_privateuseone_for_python_backend(NAME, _Backend())
torch._C._set_only_lift_cpu_tensors(True)  # what `torch.tensor` makes is moved by the dispatcher
torch.autograd.set_multithreading_enabled(False)
torch._VF.lstm = _step_by_step(torch._VF.lstm, decompositions.lstm_impl, decompositions.lstm_data_impl)
torch._VF.gru = _step_by_step(torch._VF.gru, decompositions.gru_impl, decompositions.gru_impl_data)
