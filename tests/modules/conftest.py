"""What tests of models share."""

import pytest
import torch


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """An untrained model, saved as `fit` saves it, that sees images of 32 x 40 pixels."""
    from taskformer.modules import Baseline

    torch.manual_seed(0)
    model = Baseline({"depth": {}, "semseg": {"classes": ["a", "b", "c"]}}, embed_dim=8, head_dim=4)
    model.train_size.copy_(torch.tensor([32, 40]))
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(state)
    torch.save(state, path)
    return path
