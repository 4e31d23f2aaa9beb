"""The loss that learns from a teacher (Hinton et al. 2014, with the constants of TAS)."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from htas.data.task import CLASSIFY, Outputs, Task
from htas.errors import UserError
from htas.training.recipe import LEAST_TEMPERATURE, MOST_TEMPERATURE


@dataclass(frozen=True)
class Distill:
    """How much a student learns from its teacher, the trained base network."""

    alpha: float = 0.9
    """Weight of the teacher's part in the loss; 0 trains without a teacher."""
    temperature: float = 4.0
    """Divides the logits of both networks."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"distill.alpha must lie in 0..1, got {self.alpha}")
        if not LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE:
            raise UserError(
                f"distill.temperature must lie in {LEAST_TEMPERATURE:g}..{MOST_TEMPERATURE:g}, got {self.temperature:g}"
            )

    def loss(self, student: Outputs, teacher: Outputs, labels: Any, task: Task = CLASSIFY) -> Tensor:
        """(1 - alpha) CE(student, labels) + alpha T^2 KL(teacher || student) of logits [N, classes], a scalar. A task
        with a `distil` loss uses that and its own loss with the same weights."""
        if task.distil is not None:
            return (1 - self.alpha) * task.loss(student, labels) + self.alpha * task.distil(student, teacher, labels)
        learnt, right = (F.log_softmax(logits / self.temperature, dim=1) for logits in (student, teacher))
        soft = F.kl_div(learnt, right, reduction="batchmean", log_target=True)
        return (1 - self.alpha) * task.loss(student, labels) + self.alpha * self.temperature**2 * soft
