"""Whether this machine can run what the trainer is asked for, checked before any process is started."""

import os
from typing import Any

import torch
from jsonargparse import Namespace

from taskformer.errors import ConfigError, require
from taskformer.parallel import default_workers

#: What says where the other machines are: torchrun, SLURM, or a person.
LAUNCHED = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR", "OMPI_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE")
#: Training processes that a processor bears: one, or two to try whether several work.
PER_PROCESSOR = 2

#: Counts of the trainer, and what they may be.
COUNTS = {
    "accumulate_grad_batches": "[1, inf)",
    "check_val_every_n_epoch": "[1, inf)",
    "gradient_clip_val": "[0, inf)",
    "log_every_n_steps": "[0, inf)",
}


def require_possible(trainer: Any) -> None:
    """Refuse what the trainer cannot do here: more processes than there is anything for, machines nobody has named.

    Lightning would start a thousand processes on two processors, and wait half an hour for another machine. It divides
    by some counts without a look at them, and clips nothing at a negative bound.

    Args:
        trainer: The settings of ``trainer``.

    Raises:
        ConfigError: Says what there is.
    """
    if not isinstance(trainer, Namespace):
        msg = f"trainer must be settings by name, got {trainer}"
        raise ConfigError(msg)
    for name, interval in COUNTS.items():
        value = trainer.get(name)
        if isinstance(value, int | float):
            require(interval, **{f"trainer.{name}": value})
    accelerator, devices, num_nodes = trainer.accelerator, trainer.devices, trainer.num_nodes
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus:
        msg = f"trainer.accelerator is {accelerator!r}, but torch sees no GPU on this machine; use cpu or auto"
        raise ConfigError(msg)
    wanted = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus)
    most = gpus if on_gpus else PER_PROCESSOR * default_workers()
    if (on_gpus or accelerator in ("cpu", "auto")) and wanted > most:
        why = "one for each GPU" if on_gpus else f"{PER_PROCESSOR} for each processor"
        msg = f"trainer.devices asks for {wanted} processes, this machine takes {most}, {why}"
        raise ConfigError(msg)
    if num_nodes not in (None, 1) and not any(name in os.environ for name in LAUNCHED):
        msg = (
            f"trainer.num_nodes is {num_nodes}, but nothing says where the other machines are: start the program with "
            "torchrun or SLURM"
        )
        raise ConfigError(msg)
