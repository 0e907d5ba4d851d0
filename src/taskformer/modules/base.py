"""The LightningModule of every model: what it trains with; subclasses only build the network."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_info
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from taskformer.errors import ConfigError
from taskformer.memory import keep_freed_memory
from taskformer.modules.balancing import BalancingCallable, FixedWeights
from taskformer.modules.distillation import FEATURES, Distillation, Distiller
from taskformer.modules.evaluating import Batch, EvaluatedModule
from taskformer.modules.groups import as_group
from taskformer.modules.loss_weights import LossWeights, configured_weights
from taskformer.modules.optimisation import (
    DecayOn,
    configuration,
    lay_out_as_parameters,
    parameter_groups,
    rates_by_name,
    reconfigure,
    require_same_kind,
)
from taskformer.modules.recipe import training_recipe
from taskformer.modules.schedules import PolyLR
from taskformer.seeds import derive
from taskformer.tasks import build_tasks

#: Arguments of constructors that are not plain values, or follow from others, and thus are no hyper-parameters.
BUILDERS = ("network", "build_head", "last_only", "balancing", "optimizer", "lr_scheduler")
#: Nor are those that only say how a machine computes: what is loaded from a checkpoint computes plainly.
COMPUTATION = ("channels_last", "compile", "matmul_precision", "frozen_precision", "feature_cache")

MatmulPrecision = Literal["highest", "high", "medium"]


class MultiTaskModule(EvaluatedModule):
    """Train, validate, test and predict with one network and any set of tasks.

    >>> class Plain(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Conv2d(3, 1, kernel_size=3, padding=1)
    ...
    ...     def forward(self, image):
    ...         return {"depth": self.layer(image)}
    >>> model = MultiTaskModule({"depth": {}}, Plain(), loss_weights={"depth": 2.0})
    >>> model.predict_image(torch.zeros(3, 48, 64))["depth"].shape
    (1, 48, 64)

    Args:
        tasks: Task name to its plain description, see :func:`taskformer.tasks.build_tasks`.
        network: Maps ``(B, 3, H, W)`` ImageNet-normalised images to ``{task: raw output}``.
        weights: What the network was filled with before the training. Every model takes ``"random"``.
        initialisation: What those weights were trained on, for the results: ``imagenet1k``, ``imagenet22k``, ``ade20k``
            or a label of your own; random ones need none.
        loss_weights: Weight of some tasks' losses, the others keep their defaults; or the name of a published recipe
            whose weights they are, see :data:`taskformer.modules.loss_weights.RECIPES`.
        balancing: How the losses become one. By default their sum with these weights.
        optimizer: Builds the optimizer from parameter groups.
        distillation: A teacher, and what is learnt from it.
        lr_scheduler: Builds the schedule from the optimizer, stepped after every batch; None: constant rate.
        weight_decay_on: ``"weights"``: matrices and kernels decay, but not norms, biases, queries, positions and what
            else the network declares; ``"all"``: everything does, as in some published recipes.
        channels_last: Keep the kernels of convolutions, and so their outputs, channels last: faster on GPUs with tensor
            cores. For checkpoints and results it makes no difference.
        compile: Let ``torch.compile`` make one program of the network while a Trainer runs it. Takes a minute at the
            first batch, and again at the first one of another size.
        matmul_precision: How exactly a GPU multiplies float32 matrices while a Trainer runs: ``"highest"``, ``"high"``
            (TF32) or ``"medium"`` (bfloat16). None: as the process does anyway.

    Raises:
        ConfigError: If a weight is negative, or a recipe does not have a task.
        UnknownNameError: If ``loss_weights`` names a task or a recipe that does not exist.

    Attributes:
        recipe_settings: Names of the hyper-parameters that belong to the training and not to the network, see
            :func:`~taskformer.modules.recipe.training_recipe`.
        network: The network.
        scaffold: What trains with it, by name, and is no part of it: nothing else but training needs it.
        run_folder: The run folder that it was loaded from, if it was.
    """

    recipe_settings: ClassVar[tuple[str, ...]] = ("weight_decay_on",)

    def __init__(
        self,
        tasks: Mapping[str, Mapping[str, Any]],
        network: nn.Module,
        weights: str = "random",
        initialisation: str | None = None,
        loss_weights: LossWeights | None = None,
        balancing: BalancingCallable = FixedWeights,
        distillation: Distillation = Distillation(),  # noqa: B008  # groups are immutable
        # The parser takes this class's defaults also for its subclasses.
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-3, weight_decay=1e-4),
        lr_scheduler: LRSchedulerCallable | None = lambda optimizer: PolyLR(optimizer, power=0.9),
        weight_decay_on: DecayOn = "weights",
        channels_last: bool = False,
        compile: bool = False,
        matmul_precision: MatmulPrecision | None = None,
    ) -> None:
        super().__init__(build_tasks(tasks))
        keep_freed_memory()  # in every process that has a network: fit, test, predict, search, notebooks
        # Also the arguments of the subclass that is being built.
        # Loggers get the whole configuration, from the callback `Tracking`.
        self.save_hyperparameters(ignore=(*BUILDERS, *COMPUTATION), logger=False)
        self.distillation = as_group("distillation", Distillation, distillation)
        self.save_hyperparameters({"distillation": asdict(self.distillation)}, logger=False)
        #: The teachers of a training that is going on, or is over.
        self.distiller: Distiller | None = None
        self.network = network
        self.scaffold = nn.ModuleDict()
        if channels_last:
            make_channels_last(network)
        self.compiles = compile
        self.matmul_precision = matmul_precision
        #: The compiled network while a Trainer runs; no part of the state, whose names stay the network's.
        self._compiled: Callable[[Tensor], dict[str, Tensor]] | None = None
        self.loss_weights = configured_weights(loss_weights, self.tasks)
        self.balancing = balancing(self.loss_weights | self.distillation.loss_weights(self.tasks))
        if compile and not self.balancing.compilable:
            name = type(self.balancing).__name__
            msg = f"compile: a compiled network gives all tasks' gradient at once, and {name} needs each; leave it out"
            raise ConfigError(msg)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.weight_decay_on = weight_decay_on
        #: The losses of the last training batch as they were balanced, until they are differentiated.
        self._balanced: dict[str, Tensor] = {}
        #: The last training batch and its number, until the optimizer's step.
        self._last: tuple[Batch, int] | None = None
        self.run_folder: Path | None = None

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict raw outputs from ``(B, 3, H, W)`` ImageNet-normalised images."""
        outputs: dict[str, Tensor] = (self._compiled or self.network)(image)
        return outputs

    def load_teachers(self) -> None:
        """Load the teachers of a training, if there are any and they are not there yet, and what trains with them."""
        if self.distiller is None and self.distillation.is_on:
            self.distiller = Distiller(self.distillation, self.network, self.tasks)
            if self.distiller.features is not None:
                self.scaffold[FEATURES] = self.distiller.features.projection

    def setup(self, stage: str) -> None:
        """Let the Trainer's runs compute as they are asked to, and a training have its teachers."""
        if stage == "fit":
            self.load_teachers()
        if self.compiles:
            self._compiled = torch.compile(self.network.forward)
        if self.matmul_precision is not None:
            self._precision_before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(self.matmul_precision)

    def teardown(self, stage: str) -> None:
        """Compute plainly again."""
        self._compiled = None
        if self.matmul_precision is not None:
            torch.set_float32_matmul_precision(self._precision_before)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start dropout's random stream of this batch, and note the size of the training images."""
        self._start_random_stream(batch_idx)
        if batch_idx == 0:
            self.balancing.start_epoch()
            self.train_size.copy_(torch.tensor(batch["image"].shape[-2:]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the balanced loss of a batch."""
        batch = self.taught(batch)
        self._last = batch, batch_idx
        losses, shown = self.learn(batch)
        return self._balance(losses, shown, len(batch["image"]))

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the losses that a training step balances, by name, and those that are logged.

        Args:
            batch: The batch, with what teachers say of it.
        """
        with self.distiller.watching() if self.distiller else nullcontext():
            predictions = self.predictions(batch["image"])
        losses = self.objectives(predictions, batch)
        return losses, losses

    def taught(self, batch: Batch) -> Batch:
        """Return a batch with what teachers say of it, if there are any, see :meth:`Distiller.teach`."""
        return self.distiller.teach(batch) if self.distiller else batch

    def predictions(self, image: Tensor) -> list[dict[str, Tensor]]:
        """Predict all that a training step supervises: the network's outputs first, then auxiliary ones, if any."""
        return [self(image)]

    def objectives(self, predictions: Sequence[Mapping[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
        """Compute the losses that a training step balances, by name.

        Args:
            predictions: What :meth:`predictions` returned for the batch's images.
            batch: The batch, with what teachers say of it.
        """
        losses = self.task_losses(predictions[0], batch["targets"])
        if self.distiller is None:
            return losses
        distances = self.distiller.distances(predictions[0], batch)
        if torch.is_grad_enabled():  # not again where a balancing method looks back at a step
            shown = {f"train/distance/{name}": distance for name, distance in distances.items()}
            self.log_dict(shown, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch["image"]))
        return losses | {name: losses[name] + x if name in losses else x for name, x in distances.items()}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Let the balancing method differentiate the loss, which Lightning has scaled."""
        losses, self._balanced = self._balanced, {}
        trained = (*self.network.parameters(), *self.scaffold.parameters())
        self.balancing.backward(loss, losses, [p for p in trained if p.requires_grad])
        for name, value in self.balancing.found().items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and let the balancing method learn from it."""
        super().optimizer_step(*args, **kwargs)
        if self._last is not None:
            self.balancing.after_step(partial(self._losses_now, *self._last))
            self._last = None

    @torch.no_grad()
    def _losses_now(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compute the losses of a training batch again, with the same dropout; statistics of norms stay as they are."""
        before = [buffer.clone() for buffer in self.network.buffers()]
        self._start_random_stream(batch_idx)
        with self.trainer.precision_plugin.train_step_context():
            losses, _ = self.learn(batch)
        for buffer, values in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(values)
        return losses

    def _start_random_stream(self, batch_idx: int) -> None:
        """Start the random numbers of a training batch anew."""
        torch.manual_seed(derive("batch", self.global_step, batch_idx, self.global_rank))

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule over backbone and head parameters, with and without weight decay."""
        optimizer = self.optimizer(self._parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_scale"]
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        if isinstance(scheduler, PolyLR) and scheduler.total_steps is None:
            scheduler.span(self._training_steps())
        self.optimisation = configuration(optimizer, scheduler)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def describe_training(self, trainer: Trainer) -> dict[str, Any]:
        """Describe a training of this model that is about to start, see :func:`training_recipe`."""
        settings = {key: self.hparams[key] for key in self.recipe_settings} | self.distillation.described()
        return training_recipe(trainer, self.lr_scheduler, settings)

    def on_fit_start(self) -> None:
        """Note what the model is trained with, and check that a training that goes on can.

        What was learnt is restored after this.
        """
        if self.distiller is not None:
            self.distiller.to(self.device)
        self.recipe = self.describe_training(self.trainer)
        if self.optimisation_before and self.optimisation:
            require_same_kind(self.optimisation_before, self.optimisation)

    def on_train_start(self) -> None:
        """Let the present configuration of optimizer and schedule win over the one that was restored."""
        if self.optimisation_before is None or self.optimisation is None:
            return
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        assert scheduler is None or isinstance(scheduler, LRScheduler)
        changes = reconfigure(optimizer, scheduler, self.optimisation_before, self.optimisation)
        lay_out_as_parameters(optimizer)
        if changes:
            rank_zero_info(f"the training goes on with another configuration: {', '.join(changes)}")

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, also those of a fused optimizer, which Lightning refuses in every mixed precision.

        Only where a scaler has enlarged them, with 16 bits of range, would it be wrong.
        """
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the learning rates that this step has."""
        for logger in self.loggers:
            logger.log_metrics(rates_by_name(optimizer), step=self.global_step)

    def _training_steps(self) -> int:
        """Return how many optimizer steps the whole training has.

        Raises:
            ConfigError: If it has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            msg = "the learning-rate schedule spans the training, which has no end: set trainer.max_epochs or max_steps"
            raise ConfigError(msg)
        return int(steps)

    def lr_scales(self) -> dict[str, float]:
        """Return the learning rates of the network's parameters over the optimizer's, where they are not 1."""
        return {}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Split all parameters by learning rate and weight decay."""
        declared: Callable[[], set[str]] = getattr(self.network, "no_weight_decay", set)
        parameters = chain(self.network.named_parameters(), self.scaffold.named_parameters(prefix="scaffold"))
        groups = parameter_groups(parameters, self.lr_scales(), declared(), self.weight_decay_on)
        own = list(self.balancing.parameters())
        return [*groups, {"params": own, "lr_scale": 1.0, "weight_decay": 0.0}] if own else groups

    def parameter_names(self) -> list[list[str]]:
        """List the names of the network's parameters in each group of the optimizer."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        groups = [[names[p] for p in group["params"]] for group in self._parameter_groups()]
        return [group for group in groups if not group[0].startswith("balancing.")]

    def _balance(self, losses: dict[str, Tensor], logged: dict[str, Tensor], batch_size: int) -> Tensor:
        """Make one loss of the tasks' losses in a training batch; log it with those that are to be shown."""
        total: Tensor = self.balancing(losses)
        self._balanced = losses
        self._log_losses("train", logged | {"total": total}, batch_size)
        weights = {f"train/weight/{name}": weight for name, weight in self.balancing.weights_in(total, losses).items()}
        self.log_dict(weights, on_step=False, on_epoch=True, sync_dist=True, batch_size=batch_size)
        return total


def make_channels_last(network: nn.Module) -> None:
    """Keep the kernels of a network's convolutions channels last; ``Module.to`` refuses parameters of five axes."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)


def not_negative(name: str, value: float) -> float:
    """Return a finite number that is at least 0, or refuse it."""
    if not 0 <= value < float("inf"):
        msg = f"{name} is at least 0 and finite, got {value}"
        raise ConfigError(msg)
    return value


def image_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Tasks whose answer is about the whole image and not its pixels."""
    return [name for name, task in build_tasks(tasks).items() if task.geometry == "image"]


def output_channels(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Channels that the network must give each task."""
    return {name: task.channels for name, task in build_tasks(tasks).items()}
