"""The checkpoints of trainings and what is in them. No other file opens one or knows its keys."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from taskformer.errors import WeightsError
from taskformer.files import read_tensors
from taskformer.models.adapting import fingerprint
from taskformer.modules.fitting import require_fitting
from taskformer.modules.upgrading import forget, obsolete_names
from taskformer.tasks import Task

CLASS, RECIPE, OPTIMISATION = "taskformer_class", "taskformer_recipe", "optimisation"
#: What is left out of a checkpoint: the names of the tensors and their fingerprint.
LEFT_OUT = "left_out"
#: Where checkpoints hold weights: those to use, and while weights are averaged those that train.
STATES = ("state_dict", "current_model_state")


class Checkpoint:
    """What Lightning and :class:`Checkpointed` wrote of a training.

    >>> Checkpoint({"taskformer_class": "taskformer.modules.baseline.Baseline", "global_step": 7}).global_step
    7

    Args:
        content: Everything, as Lightning restores it.
        source: Where it comes from, for messages.

    Raises:
        WeightsError: If it is something else.
    """

    def __init__(self, content: Any, source: object = "the checkpoint") -> None:
        self.content: dict[str, Any] = content
        self.source = source
        if not self.is_one(content):
            msg = f"{source} does not name its model's class; only checkpoints of `taskformer fit` can be loaded"
            raise WeightsError(msg)

    @staticmethod
    def is_one(content: Any) -> bool:
        """Tell whether what a file holds is a checkpoint of ours."""
        return isinstance(content, dict) and bool(content.get(CLASS))

    @property
    def class_name(self) -> str:
        """Full name of the model's class."""
        return str(self.content[CLASS])

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """The plain arguments of the model's constructor."""
        return dict(self.content.get("hyper_parameters", {}))

    @property
    def state(self) -> dict[str, Any]:
        """All tensors of the LightningModule by name."""
        return dict(self.content.get("state_dict", {}))

    @property
    def left_out(self) -> dict[str, Any]:
        """What it leaves out because the weights that the training began from give it again; mostly nothing."""
        return dict(self.content.get(LEFT_OUT, {}))

    @property
    def network(self) -> dict[str, Any]:
        """The tensors of its network by name."""
        prefix = "network."
        return {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}

    @property
    def global_step(self) -> int:
        """Optimizer steps that are done."""
        return int(self.content.get("global_step", 0))

    @property
    def recipe(self) -> dict[str, Any]:
        """What the weights are trained with, see :func:`~taskformer.modules.recipe.training_recipe`; empty: unknown."""
        return dict(self.content.get(RECIPE, {}))

    @property
    def optimisation(self) -> dict[str, Any] | None:
        """How optimizer and schedule were built, see :func:`~taskformer.modules.optimisation.configuration`."""
        return self.content.get(OPTIMISATION)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint whole and safely, see :func:`taskformer.files.read_tensors`.

    Raises:
        WeightsError: If there is no such file, it is damaged, or it was not written by taskformer.
    """
    return Checkpoint(read_tensors(Path(path)), path)


class Checkpointed(LightningModule):
    """A LightningModule whose checkpoints say what they are, and which refuses those of another.

    Attributes:
        tasks: The model's tasks by name.
        recipe: What the weights were trained with, see :func:`~taskformer.modules.recipe.training_recipe`; empty if
            they do not say.
        optimisation: How the optimizer and its schedule were built, see
            :func:`~taskformer.modules.optimisation.configuration`.
        optimisation_before: The same of the checkpoint that training goes on from.
    """

    tasks: dict[str, Task]

    def __init__(self) -> None:
        super().__init__()
        self.recipe: dict[str, Any] = {}
        self.optimisation: dict[str, Any] | None = None
        self.optimisation_before: dict[str, Any] | None = None
        self._given: str | None = None

    @classmethod
    def upgraded(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of any version, of a checkpoint or a run's ``config.yaml``, as the constructor takes them."""
        return dict(settings)

    def parameter_names(self) -> list[list[str]]:
        """List the names of the network's parameters in each group of the optimizer."""
        return []

    def given(self) -> dict[str, Tensor]:
        """Return tensors of the state that never change and that building the model gives again."""
        return {}

    def note_given(self) -> None:
        """Take the fingerprint of what building the model has given; the constructor's last step."""
        given = self.given()
        self._given = fingerprint(given) if given else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the class, so that :func:`taskformer.load` finds it, and what the weights are trained with.

        What building the model gives again is left out, if it still is what it was.
        """
        checkpoint[OPTIMISATION] = self.optimisation
        checkpoint[CLASS] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint[RECIPE] = self.recipe
        if self._given is not None:
            leave_out(checkpoint, list(self.given()), self._given)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the loaded weights were trained from and with, whatever the network was filled with before.

        Raises:
            WeightsError: If the checkpoint is of other tasks, classes or sizes, or leaves out weights that this model
                was not built with.
        """
        saved = Checkpoint(checkpoint)
        fill_in(checkpoint, self.state_dict())
        forget(checkpoint, obsolete_names(self), self.parameter_names())
        checkpoint["state_dict"] = state = with_own_training_parts(self.state_dict(), saved.state)
        require_fitting(self.upgraded(saved.hyper_parameters), state, self, self.tasks)
        if saved.left_out:
            require_given(saved, self.hparams["weights"])  # these weights stay noted, in whatever place they lie now
        else:
            self.hparams["weights"] = saved.hyper_parameters["weights"]
        self.hparams["initialisation"] = saved.hyper_parameters.get("initialisation")
        self.recipe = saved.recipe
        self.optimisation_before = saved.optimisation


def leave_out(content: dict[str, Any], names: Sequence[str], given: str) -> None:
    """Leave tensors out of a checkpoint in place, if they still are what building the model has given.

    Args:
        content: The checkpoint.
        names: Names of the tensors.
        given: Their fingerprint when the model was built.
    """
    states = [content[key] for key in STATES if key in content]
    if all(fingerprint({name: state[name] for name in names}) == given for state in states):
        content[LEFT_OUT] = {"names": list(names), "fingerprint": given}
        for state in states:
            for name in names:
                del state[name]


def fill_in(content: dict[str, Any], own: Mapping[str, Tensor]) -> None:
    """Put what was left out of a checkpoint back in place, from a model that was built with the same weights."""
    names = content.get(LEFT_OUT, {}).get("names", ())
    for key in STATES:
        if key in content:
            content[key] = {name: own[name] for name in names if name in own} | content[key]


def require_given(checkpoint: Checkpoint, weights: str) -> None:
    """Refuse to use what was filled in if it is not what was left out.

    Args:
        checkpoint: The checkpoint, filled in.
        weights: What the model was built with.

    Raises:
        WeightsError: If the two differ.
    """
    state = checkpoint.state
    if fingerprint({name: state[name] for name in checkpoint.left_out["names"]}) != checkpoint.left_out["fingerprint"]:
        msg = (
            f"{checkpoint.source} leaves out the frozen encoder, which was that of the weights "
            f"{checkpoint.hyper_parameters['weights']!r}; {weights!r} gives another one now: bring back the file of "
            "then, or name it with --model.weights"
        )
        raise WeightsError(msg)


def with_own_training_parts(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Let what only training needs start anew where the saved state is of another method, or has none of it.

    These are the balancing method and the scaffold: they are no part of what the network computes.
    """
    state = dict(saved)
    for prefix in ("balancing.", "scaffold."):
        parts = [{name: values for name, values in each.items() if name.startswith(prefix)} for each in (own, saved)]
        shapes = [{name: values.shape for name, values in part.items()} for part in parts]
        if shapes[0] != shapes[1]:
            state = {name: values for name, values in state.items() if name not in parts[1]} | parts[0]
    return state


def restore(model: Checkpointed, checkpoint: Checkpoint) -> None:
    """Fill a model from a checkpoint of the same class, tasks and sizes.

    Raises:
        WeightsError: If it is of others.
    """
    model.on_load_checkpoint(checkpoint.content)
    model.load_state_dict(checkpoint.state)
