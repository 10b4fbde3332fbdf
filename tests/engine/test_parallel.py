"""Process groups: leaving one leaves nothing of it behind."""

import torch
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

from stagecraft.engine import parallel


def test_another_model_may_have_more_mtp_depths():
    for depths in (1, 2):
        parallel.initialize(seed=0)
        for depth in range(depths):
            MTPLossLoggingHelper.save_metrics_to_tracker(torch.ones(()), torch.zeros(()), torch.ones(()), depth, depths)
        assert MTPLossLoggingHelper.tracker["loss_values"].tolist() == [1.0] * depths
        parallel.shutdown()
