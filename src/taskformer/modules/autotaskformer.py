"""AutoTaskFormer as a LightningModule: a supernet that trains, or one sub-network of it."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from taskformer.errors import ConfigError, WeightsError, require
from taskformer.files import read_tensors
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.models.autotaskformer.autoformer import warm_start
from taskformer.models.autotaskformer.layers import Variant, resample_positions
from taskformer.models.autotaskformer.subnet import Network
from taskformer.models.autotaskformer.vit import PlainViT
from taskformer.modules.autotaskformer_args import MOVED, Head, Sampling, Space, regrouped
from taskformer.modules.base import MultiTaskModule, image_tasks, output_channels
from taskformer.modules.checkpoints import Checkpoint
from taskformer.modules.evaluating import Batch
from taskformer.modules.groups import as_group
from taskformer.modules.picking import Choice, choose
from taskformer.modules.sampling import sample
from taskformer.seeds import run_seed


class AutoTaskFormer(MultiTaskModule):
    """A supernet of vision transformers in which sizes and what tasks share are chosen after training.

    At every step one or a few sub-networks train. Validation measures the same three each time: the largest, which is
    also what predicts, under the usual names, the smallest under ``val_smallest/...`` and one in the middle under
    ``val_median/...``. With ``architecture`` set, that one sub-network trains alone, like any other model.

    >>> space = Space("custom", embed_dims=[32, 64], depths=[2, 3], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=16)
    >>> model = AutoTaskFormer({"depth": {}, "edges": {}}, space, Head("pup", width=32), image_size=(64, 96))
    >>> model.space.smallest().embed_dim, model.space.largest().embed_dim
    (32, 64)

    Under DDP the strategy must be ``ddp_find_unused_parameters_true``: a step leaves out what it did not draw.

    Args:
        tasks: Task name to its plain description; filled in from the data module.
        space: What can be chosen after training: the sizes of sub-networks, and what their tasks share.
        head: What turns tokens into maps.
        image_size: Height and width of the training images: the positions learned are those of their patches. Other
            sizes work.
        patch_size: Side of a patch in pixels; None: that of the space's ViT, or 16.
        max_relative: Largest distance in patches that relative positions tell apart; 0: there are none.
        drop_path: Stochastic depth rate of the last layer.
        sampling: Which sub-networks train, and from what they learn.
        layer_decay: Factor of the learning rate from each layer to the one before it.
        architecture: A JSON file of one architecture (or its text): only this sub-network is trained. With a single
            task, what the file says about sharing does not matter.
        weights: ``"random"``, a checkpoint of AutoFormer's supernet or of a supernet trained here, or, with the space
            ``"vit"``, its weights: as of a :class:`~taskformer.models.backbones.Backbone`, or a file of ``taskformer
            import vit``. A sub-network inherits its part.
        variant: In what the transformer differs from AutoFormer's; the space ``"vit"`` sets it.
        kwargs: Settings of every model, see :class:`~taskformer.modules.base.MultiTaskModule`.

    Raises:
        ConfigError: If settings contradict each other.
        WeightsError: If weights cannot be read or do not fit.

    Reference:
        Liu et al. AutoTaskFormer: Searching Vision Transformers for Multi-task Learning. arXiv 2304.08756, of which
        neither code nor settings are published; Chen et al. AutoFormer. ICCV 2021.
    """

    recipe_settings = (*MultiTaskModule.recipe_settings, "layer_decay")

    def __init__(
        self,
        tasks: dict[str, dict[str, Any]],
        space: Space = Space(),  # noqa: B008  # groups are immutable
        head: Head = Head(),  # noqa: B008  # immutable too
        sampling: Sampling = Sampling(),  # noqa: B008  # immutable too
        image_size: tuple[int, int] = (224, 224),
        patch_size: int | None = None,
        max_relative: int = 14,
        drop_path: float = 0.1,
        layer_decay: float = 1.0,
        architecture: str | None = None,
        weights: str = "random",
        variant: Variant = Variant(),  # noqa: B008  # immutable as well
        **kwargs: Any,
    ) -> None:
        require("(0, 1]", layer_decay=layer_decay)
        require("[0, 1)", drop_path=drop_path)
        require("[1, inf)", image_size=image_size, patch_size=patch_size)
        require("[0, inf)", max_relative=max_relative)
        # Checkpoints hold plain types.
        space, head = as_group("space", Space, space, MOVED["space"]), as_group("head", Head, head, MOVED["head"])
        sampling, variant = as_group("sampling", Sampling, sampling), as_group("variant", Variant, variant)
        vit = None
        if space.vit is not None:
            vit = PlainViT(space.vit, "random" if _is_of_supernet(weights) else weights)
            space, variant = space.within(vit.shape), vit.shape.variant
            patch_size = patch_size or vit.shape.patch_size
        patch_size = patch_size or 16
        supernet = Supernet(
            space.build(len(tasks)),
            output_channels(tasks),
            head=head.kind,
            image_tasks=image_tasks(tasks),
            image_size=image_size,
            patch_size=patch_size,
            max_relative=max_relative,
            drop_path=drop_path,
            head_options={} if head.width is None else {"width": head.width},
            variant=variant,
        )
        if weights == "random":
            supernet.warm_start_copies()
        elif vit is None or _is_of_supernet(weights):
            _load_weights(supernet, weights)
        else:
            vit.fill(supernet)
        single = None if architecture is None else Architecture.read(architecture, len(tasks))
        network: nn.Module = supernet if single is None else supernet.extract(single)
        super().__init__(tasks, network, weights=weights, **kwargs)
        if self.compiles and single is None:
            msg = "compile: a supernet is another network at each step; compile one that trains alone (architecture)"
            raise ConfigError(msg)
        # In plain types; a checkpoint must not depend on the architecture's file.
        text = None if single is None else single.to_json()
        groups: dict[str, Any] = {"space": space, "head": head, "sampling": sampling, "variant": variant}
        plain = {name: asdict(group) for name, group in groups.items()}
        self.save_hyperparameters(plain | {"architecture": text, "patch_size": patch_size}, logger=False)
        self.single = single
        self.space = supernet.space
        self.image_size = image_size
        self.sampling = sampling
        self.layer_decay = layer_decay
        #: Validated beside the largest.
        self.watched = {} if single else {"smallest": self.space.smallest(), "median": self.space.median()}
        for name in self.watched:
            self.metrics[f"val_{name}"] = nn.ModuleDict({task: self.tasks[task].metrics() for task in self.tasks})
        self.seed = 0
        self.total_steps: float = math.inf

    @classmethod
    def upgraded(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Put settings from before there were groups into their groups."""
        return regrouped(settings)

    def set(self, architecture: Architecture | None) -> None:
        """Switch to a sub-network, which predicts, is tested and exported from now on; None: the largest, as at first.

        A training returns to the largest, which it validates.

        Raises:
            ConfigError: If the architecture does not fit, or this is one sub-network alone.
        """
        if not isinstance(self.network, Supernet):
            msg = "this model is one sub-network alone; only a supernet, trained without an architecture, can switch"
            raise ConfigError(msg)
        self.network.set(architecture)

    def pick(
        self,
        params: float | None = None,
        macs: float | None = None,
        latency: float | None = None,
        run: str | Path | None = None,
    ) -> Choice:
        """Switch to a sub-network that costs no more than a budget, see :func:`~taskformer.modules.picking.choose`.

        >>> model = taskformer.load("runs/autotaskformer_rooms")  # doctest: +SKIP
        >>> print(model.pick(params=1.3e6))  # doctest: +SKIP
        evolution-07-31: 1.287 M params, 0.3312 G MACs

        Args:
            params: Most parameters.
            macs: Most multiply-accumulates for one image of ``image_size``.
            latency: Most seconds for one such image, measured now where the model is.
            run: The run folder whose search is asked; None: the one that it was loaded from. Without a search random
                sub-networks are the candidates.
        """
        return choose(self, run, params, macs, latency)

    def sample(self, step: int) -> list[Architecture]:
        """Return the sub-networks that train at an optimizer step: a function of the run's seed and the step."""
        progress = step / self.total_steps
        settings = self.sampling
        sampler = settings.sampler if progress >= settings.sandwich_from else "uniform"
        return sample(sampler, self.space, self._cost, self.seed, step, progress, settings.sharing_warmup)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Do as every model does, with the layers in the checkpoint's order."""
        if isinstance(self.network, Supernet):
            self.network.take_order(checkpoint.get("state_dict", {}), "network.")
        super().on_load_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        """Note the run's seed and the length of the training, on which sampling depends."""
        super().on_fit_start()
        if isinstance(self.network, Supernet):
            self.network.set(None)  # `val/...` is of the largest
            self.seed = run_seed()
            self.total_steps = self._training_steps()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start the copies from the shared weights when the sharing warm-up ends."""
        super().on_train_batch_start(batch, batch_idx)
        if self.global_step == self._warmup_steps:
            self._follow_shared()

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the mean losses of the step's sub-networks, by task, and those of the first, which are logged."""
        if self.single:
            return super().learn(batch)
        architectures = self.sample(self.global_step)
        learnt = (self._learnt_apart if self.sampling.divide else self._learnt_together)(architectures, batch)
        means = {name: torch.stack([losses[name] for losses in learnt]).mean() for name in self.tasks}
        return means, learnt[0]

    def _learnt_together(self, architectures: Sequence[Architecture], batch: Batch) -> list[dict[str, Tensor]]:
        """Return the losses of sub-networks on the same images, from which the others also learn of the first one."""
        first, *others = architectures
        outputs = self.network(batch["image"], first)
        learnt = [self.objectives([outputs], batch)]
        for architecture in others:
            student = self.network(batch["image"], architecture)
            labelled, distances = self.objectives([student], batch), self.distances(student, outputs)
            share = self.sampling.distill
            learnt.append({name: torch.lerp(labelled[name], distances[name], share) for name in self.tasks})
        return learnt

    def _learnt_apart(self, architectures: Sequence[Architecture], batch: Batch) -> list[dict[str, Tensor]]:
        """Return the losses of sub-networks on a part of the batch each; of a few images the last have none."""
        count = len(architectures)
        images = batch["image"].chunk(count)
        answers = {key: _parts(batch.get(key, {}), count) for key in ("targets", "teacher")}
        return [
            self.objectives(
                [self.network(part, architecture)],
                {"image": part} | {key: parts[index] for key, parts in answers.items()},
            )
            for index, (part, architecture) in enumerate(zip(images, architectures, strict=False))
        ]

    def distances(self, outputs: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute each task's distance from a larger network's outputs."""
        return {name: task.distance(outputs[name], teacher[name]) for name, task in self.tasks.items()}

    def on_validation_start(self) -> None:
        """During the sharing warm-up let the copies, which do not train yet, follow the shared weights."""
        if self.trainer.state.fn == TrainerFn.FITTING and self.global_step <= self._warmup_steps:
            self._follow_shared()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics of the largest sub-network and of those watched."""
        super().validation_step(batch, batch_idx)
        for name, architecture in self.watched.items():
            self._evaluate(f"val_{name}", batch, partial(self.network, architecture=architecture))

    def on_validation_epoch_end(self) -> None:
        """Compute and log the validation metrics."""
        super().on_validation_epoch_end()
        for name in self.watched:
            self._finish(f"val_{name}")

    @property
    def _warmup_steps(self) -> int:
        """Optimizer steps of the sharing warm-up."""
        return 0 if self.single else math.ceil(self.sampling.sharing_warmup * self.total_steps)

    def _follow_shared(self) -> None:
        """Set all copies to the shared weights; without a warm-up they keep what they started from."""
        if self._warmup_steps and isinstance(self.network, Supernet):
            self.network.warm_start_copies()

    def _cost(self, architecture: Architecture) -> float:
        """Return the multiply-accumulates of a sub-network for one training image."""
        assert isinstance(self.network, Supernet)
        return self.network.count_macs(architecture, self.image_size)

    def lr_scales(self) -> dict[str, float]:
        """Lower the rate from layer to layer: heads and the norm before them have the full one, the stem the least."""
        assert isinstance(self.network, Network)
        return {name: self.layer_decay**layers for name, layers in self.network.layers_to_heads().items()}


def _parts(maps: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Divide maps of a batch among so many sub-networks, as ``chunk`` does."""
    chunks = {name: values.chunk(count) for name, values in maps.items()}
    return [{name: parts[index] for name, parts in chunks.items() if index < len(parts)} for index in range(count)]


def _is_of_supernet(weights: str) -> bool:
    """Tell whether weights are a checkpoint of a supernet trained here, and not a ViT's."""
    path = Path(weights)
    content = read_tensors(path) if path.is_file() and path.suffix.lower() == ".ckpt" else None
    return Checkpoint.is_one(content) and Checkpoint(content).class_name.endswith(".AutoTaskFormer")


def _load_weights(supernet: Supernet, source: str) -> None:
    """Fill a supernet from a checkpoint of AutoFormer's supernet or of ours; positions may be of another image size.

    Raises:
        WeightsError: If there is no such file, it cannot be read, or it does not fill the whole supernet.
    """
    if not Path(source).is_file():
        msg = f"weights are 'random' or a checkpoint of a supernet; there is no file {source!r}"
        raise WeightsError(msg)
    # AutoFormer's checkpoints also hold its command line.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = read_tensors(Path(source))
    if not isinstance(content, dict):
        msg = f"{source} holds a {type(content).__name__} and no weights by name; give a checkpoint of a supernet"
        raise WeightsError(msg)
    if not Checkpoint.is_one(content):
        warm_start(supernet, content.get("model", content))
        return
    checkpoint = Checkpoint(content, source)
    try:
        state, settings = checkpoint.network, checkpoint.hyper_parameters
        height, width = (math.ceil(side / settings["patch_size"]) for side in settings["image_size"])
        stem = supernet.stem
        state["stem.pos_embed"] = resample_positions(state["stem.pos_embed"], (height, width), stem.grid, stem.prefix)
        supernet.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        msg = (
            f"{source}, a checkpoint of {checkpoint.class_name.rpartition('.')[2]}, holds no supernet of this "
            f"space, head and tasks: {' '.join(str(error).split())[:300]}"
        )
        raise WeightsError(msg) from error
