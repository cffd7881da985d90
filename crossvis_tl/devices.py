"""Is a device there, asked before anything is loaded onto it; and was its memory too small."""

import torch


def check_device(device: str | torch.device) -> torch.device:
    """-> the device. ValueError when the name is none, or this machine or this torch has no such device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = f"cpu, cuda:0 to cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "cpu"
        raise ValueError(f"the device {str(device)!r} is not available here; available: {there}") from error
    return torch.device(device)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or off it."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error).lower() for w in words)
