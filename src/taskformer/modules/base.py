"""The LightningModule of every model: losses, metrics, optimizer and prediction; subclasses only build the network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from taskformer.errors import ConfigError
from taskformer.memory import keep_freed_memory
from taskformer.metrics.images import ImageResults, update_by_image
from taskformer.modules.augmented import TTA, augmented
from taskformer.modules.autotaskformer_args import as_group
from taskformer.modules.balancing import BalancingCallable, FixedWeights
from taskformer.modules.checkpoints import Checkpointed
from taskformer.modules.distillation import FEATURES, Distillation, Distiller
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
from taskformer.modules.prediction import WHOLE, View, predict_maps
from taskformer.modules.recipe import training_recipe
from taskformer.modules.schedules import PolyLR
from taskformer.normalisation import normalise_bytes
from taskformer.pictures import Photograph, as_rgb
from taskformer.seeds import derive
from taskformer.tasks import Stage, Task, build_tasks
from taskformer.tasks.improvement import improvements

#: Arguments of constructors that are not plain values, or follow from others, and thus are no hyper-parameters.
BUILDERS = ("network", "build_head", "last_only", "balancing", "optimizer", "lr_scheduler")
#: Nor are those that only say how a machine computes: what is loaded from a checkpoint computes plainly.
COMPUTATION = ("channels_last", "compile", "matmul_precision", "frozen_precision", "feature_cache")

MatmulPrecision = Literal["highest", "high", "medium"]
Batch = dict[str, Any]
#: ``{task: {metric: value}}``
Results = dict[str, dict[str, float]]


class MultiTaskModule(Checkpointed):
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
        tasks: The tasks by name.
        network: The network.
        scaffold: What trains with it, by name, and is no part of it: nothing else but training needs it.
        results: The metrics of the last evaluation by stage (``"val"``, ``"test"``).
        test_stage: ``"val"`` leaves out of ``test`` what takes long, the boundary benchmark of edges; set it before
            ``protocol``.
        tta: Flips and scales over which the outputs of test images and photographs are averaged.
        per_class: Each class's score in the last evaluation by stage, for the tasks that have classes.
        scores_images: Whether ``test`` also scores each image alone; set it before.
        image_scores: Then the metrics of each image of the last batch by task.
        details: What plots of the last test need beyond its scores, see :meth:`taskformer.tasks.Task.details`:
            ``{"test": {task: {name: lists}}}``.
        run_folder: The run folder that it was loaded from, if it was.
        single_task: Headline metric of each task's single-task runs on the validation split, against which
            ``val/delta_m`` is logged; empty: it is not.
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
        super().__init__()
        keep_freed_memory()  # in every process that has a network: fit, test, predict, search, notebooks
        # Also the arguments of the subclass that is being built.
        # Loggers get the whole configuration, from the callback `Tracking`.
        self.save_hyperparameters(ignore=(*BUILDERS, *COMPUTATION), logger=False)
        self.distillation = as_group("distillation", Distillation, distillation)
        self.save_hyperparameters({"distillation": asdict(self.distillation)}, logger=False)
        #: The teachers of a training that is going on, or is over.
        self.distiller: Distiller | None = None
        self.tasks = build_tasks(tasks)
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
        #: The losses of the last training batch, see :meth:`compute_losses`.
        self.train_losses: dict[str, Tensor] = {}
        #: The same as they were balanced, until they are differentiated.
        self._balanced: dict[str, Tensor] = {}
        #: The last training batch and its number, until the optimizer's step.
        self._last: tuple[Batch, int] | None = None
        self._protocol = "standard"
        self.test_stage: Stage = "test"
        self.tta = TTA()
        self.metrics = nn.ModuleDict({stage: self._build_metrics(stage) for stage in ("val", "test")})
        self.results: dict[str, Results] = {}
        self.per_class: dict[str, dict[str, list[float]]] = {}
        self.scores_images = False
        self.image_scores: dict[str, ImageResults] = {}
        self.details: dict[str, dict[str, dict[str, Any]]] = {}
        self.single_task: dict[str, float] = {}
        self.run_folder: Path | None = None
        # Height and width of the training images, kept in checkpoints: photographs are predicted at this scale.
        self.train_size: Tensor
        self.register_buffer("train_size", torch.zeros(2, dtype=torch.int64))

    @property
    def protocol(self) -> str:
        """How evaluations score, one of :data:`taskformer.tasks.PROTOCOLS`; setting it starts the metrics anew."""
        return self._protocol

    @protocol.setter
    def protocol(self, name: str) -> None:
        self._protocol = name
        for stage in self.metrics:
            self.metrics[stage] = self._build_metrics(stage).to(self.device)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict raw outputs from ``(B, 3, H, W)`` ImageNet-normalised images."""
        outputs: dict[str, Tensor] = (self._compiled or self.network)(image)
        return outputs

    def evaluated(self, image: Tensor) -> Mapping[str, Tensor]:
        """Predict raw outputs as test images and photographs get them: averaged over what ``tta`` says."""
        return augmented(self, self.tta.flip, self.tta.scales)(image)

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

    def compute_losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute each task's unweighted loss, and as ``"total"`` their sum with the configured weights."""
        losses = self.task_losses(outputs, targets)
        return losses | {"total": FixedWeights(self.loss_weights)(losses)}

    def task_losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute each task's unweighted loss: exactly 0 where no pixel has a label."""
        return {name: task.loss(outputs[name], targets[name]) for name, task in self.tasks.items()}

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

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        self._evaluate("val", batch, self)

    def test_step(self, batch: Batch, batch_idx: int) -> Mapping[str, Tensor]:
        """Update the test metrics and return the raw outputs, for callbacks that look at single images."""
        return self._evaluate("test", batch, self.evaluated)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return decoded maps; none of a batch without an image that could be read."""
        return self.decode(self(batch["image"])) if len(batch["image"]) else {}

    def decode(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn raw outputs into class ids, metres, unit vectors, ..."""
        return {name: task.decode(outputs[name]) for name, task in self.tasks.items()}

    @torch.no_grad()
    def predict_image(self, image: Photograph, view: View = WHOLE) -> dict[str, NDArray[Any]]:
        """Predict decoded maps of one photograph.

        Raw outputs are brought back to the photograph's own resolution before they are decoded.

        Args:
            image: A file's path, an image of Pillow, an array ``(H, W, 3)`` or a tensor ``(3, H, W)``, uint8 or floats
                in [0, 1]; grey and with transparency too, see :func:`taskformer.pictures.as_rgb`.
            view: How the network sees it; by default at the scale it was trained at, everything at once.

        Returns:
            ``{task: map}``, each ``(H, W)`` or ``(C, H, W)``.

        Raises:
            InvalidImageError: If it is something else.
            CorruptFileError: If it is a file that is not a picture.
            DatasetNotFoundError: If there is no such file.
        """
        normalised = normalise_bytes(as_rgb(image)).unsqueeze(0).to(self.device)  # (1, 3, H, W)
        training = self.training
        self.eval()
        decoded = predict_maps(self.tasks, self.evaluated, normalised, int(self.train_size.min()), view)
        self.train(training)
        return {name: values.squeeze(0).cpu().numpy() for name, values in decoded.items()}

    def on_validation_epoch_end(self) -> None:
        """Compute and log the validation metrics, and delta_m where there are single-task runs to compare with."""
        self._finish("val")
        if self.single_task and not self.trainer.sanity_checking:
            _, delta_m = improvements(self.tasks, self.results["val"], self.single_task)
            self.log("val/delta_m", delta_m, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Compute and log the test metrics."""
        self._finish("test")

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

    def _build_metrics(self, stage: str) -> nn.ModuleDict:
        """Build every task's metrics; all evaluations but the test are of a training's epochs."""

        def kind(task: Task) -> Stage:
            if stage != "test":
                return "val"
            return self.test_stage if task.slow_test else "test"

        return nn.ModuleDict({name: task.metrics(self._protocol, kind(task)) for name, task in self.tasks.items()})

    def _evaluate(
        self, stage: str, batch: Batch, network: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Update the metrics of a stage, log its losses and return the raw outputs.

        A batch none of whose images could be read counts nothing, but is logged: processes must log the same names.
        """
        if not len(batch["image"]):
            nothing = torch.zeros((), device=self.device)
            self._log_losses(stage, dict.fromkeys((*self.tasks, "total"), nothing), batch_size=0)
            return {}
        outputs = network(batch["image"])
        self._log_losses(stage, self.compute_losses(outputs, batch["targets"]), len(batch["image"]))
        for name, metrics in self._stage_metrics(stage):
            output = outputs[name].float()
            target = self.tasks[name].check(batch["targets"][name], output)
            if stage == "test" and self.scores_images:
                self.image_scores[name] = update_by_image(metrics, output, target)
            else:
                metrics.update(output, target)
        return outputs

    def _finish(self, stage: str) -> None:
        """Compute, log and reset the metrics of a stage."""
        results: Results = {}
        per_class: dict[str, list[float]] = {}
        details: dict[str, dict[str, Any]] = {}
        for name, metrics in self._stage_metrics(stage):
            results[name] = {metric: float(value) for metric, value in metrics.compute().items()}
            for metric in metrics.values():
                if scores := class_scores(metric):
                    per_class[name] = scores
            if stage == "test":
                details[name] = self.tasks[name].details(metrics)
            metrics.reset()
            # The values are reduced over processes already; averaging equal numbers changes nothing.
            self.log_dict({f"{stage}/{name}/{key}": value for key, value in results[name].items()}, sync_dist=True)
        if not self.trainer.sanity_checking:
            self.results[stage] = results
            self.per_class[stage] = per_class
            if details:
                self.details[stage] = details

    def _stage_metrics(self, stage: str) -> Iterable[tuple[str, MetricCollection]]:
        """Iterate over the metrics of a stage by task."""
        metrics: Any = self.metrics[stage]
        return metrics.items()  # type: ignore[no-any-return]  # a ModuleDict does not say of what

    def _log_losses(self, stage: str, losses: Mapping[str, Tensor], batch_size: int) -> None:
        """Log the total (at every step of training) and each task's loss (means over the epoch)."""
        step = stage == "train"
        if step:
            self.train_losses = {name: loss.detach() for name, loss in losses.items()}
        self.log(
            f"{stage}/loss",
            losses["total"],
            prog_bar=not step,  # there Lightning would wait for the device at every step, see callbacks.ProgressBar
            on_step=step,
            on_epoch=not step,
            sync_dist=not step,
            batch_size=batch_size,
        )
        parts = {f"{stage}/loss/{name}": loss for name, loss in losses.items() if name != "total"}
        self.log_dict(parts, on_step=False, on_epoch=True, sync_dist=True, batch_size=batch_size)


def make_channels_last(network: nn.Module) -> None:
    """Keep the kernels of a network's convolutions channels last; ``Module.to`` refuses parameters of five axes."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)


def class_scores(metric: Metric) -> list[float]:
    """Return the score of each class over all processes, NaN where a class never occurs; empty without classes."""
    per_class: Callable[[], Tensor] | None = getattr(metric, "per_class", None)
    if per_class is None:
        return []
    with metric.sync_context():
        return per_class().tolist()


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
