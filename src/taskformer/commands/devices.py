"""Whether this machine can run what the trainer is asked for, told before any process is started."""

import os
from typing import Any

import torch

from taskformer.data.parallel import default_workers
from taskformer.errors import ConfigError

#: What says where the other machines are: torchrun, SLURM, or a person.
LAUNCHED = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR", "OMPI_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE")


def require_devices(accelerator: Any, devices: Any, num_nodes: Any) -> None:
    """Refuse more processes than there is anything for, and machines that nobody has named.

    Lightning would start a thousand processes on two processors, and wait half an hour for another machine.

    Args:
        accelerator: ``trainer.accelerator``.
        devices: ``trainer.devices``: a number, as text too, a list of numbers, or ``auto``.
        num_nodes: ``trainer.num_nodes``.

    Raises:
        ConfigError: Says how many there are.
    """
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus:
        msg = f"trainer.accelerator is {accelerator!r}, but torch sees no GPU on this machine; use cpu or auto"
        raise ConfigError(msg)
    wanted = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus)
    if (on_gpus or accelerator in ("cpu", "auto")) and wanted > (there := gpus if on_gpus else default_workers()):
        what = "GPUs" if on_gpus else "processors"
        msg = f"trainer.devices asks for {wanted} processes, this machine has {there} {what}"
        raise ConfigError(msg)
    if num_nodes not in (None, 1) and not any(name in os.environ for name in LAUNCHED):
        msg = (
            f"trainer.num_nodes is {num_nodes}, but nothing says where the other machines are: start the program with "
            "torchrun or SLURM"
        )
        raise ConfigError(msg)
