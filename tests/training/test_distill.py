"""The loss that learns from a teacher, against its formula written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from htas.training.distill import Distill


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def by_hand(student: list[list[float]], teacher: list[list[float]], labels: list[int]) -> float:
    """0.1 CE + 0.9 x 16 x KL(teacher || student), the KL a mean over the batch."""
    cross = sum(-math.log(softmax(row, 1)[label]) for row, label in zip(student, labels, strict=True)) / len(labels)
    divergence = 0.0
    for one, two in zip(student, teacher, strict=True):
        p, q = softmax(two, 4), softmax(one, 4)
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(labels)
    return 0.1 * cross + 0.9 * 16 * divergence


STUDENT, TEACHER, LABELS = [[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]], [[4.0, 0.0, -2.0], [1.0, 1.5, 2.0]], [0, 1]


def test_the_loss_is_the_formula():
    found = Distill().loss(torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(LABELS))
    assert found.item() == pytest.approx(by_hand(STUDENT, TEACHER, LABELS))


def test_its_gradient_is_the_difference_of_the_probabilities():
    """d CE / d z = (q - y) / N; d T^2 KL / d z = T (q_T - p_T) / N."""
    student = torch.tensor(STUDENT, requires_grad=True)
    Distill().loss(student, torch.tensor(TEACHER), torch.tensor(LABELS)).backward()
    for row, label in enumerate(LABELS):
        plain, soft, target = softmax(STUDENT[row], 1), softmax(STUDENT[row], 4), softmax(TEACHER[row], 4)
        wanted = [
            0.1 * (plain[k] - (k == label)) / 2 + 0.9 * 4 * (soft[k] - target[k]) / 2 for k in range(3)
        ]  # fmt: skip
        assert student.grad[row].tolist() == pytest.approx(wanted, abs=1e-6)


def test_without_a_share_for_the_teacher_it_is_cross_entropy():
    student, labels = torch.tensor(STUDENT), torch.tensor(LABELS)
    assert Distill(alpha=0).loss(student, torch.tensor(TEACHER), labels) == F.cross_entropy(student, labels)


def test_a_student_that_equals_its_teacher_has_only_the_labels_left():
    same, labels = torch.tensor(TEACHER), torch.tensor(LABELS)
    wanted = 0.1 * F.cross_entropy(same, labels).item()
    assert Distill(alpha=0.9).loss(same, same, labels).item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": 1.5}, r"distill.alpha must lie in 0\.\.1, got 1.5"),
        ({"temperature": 0.0}, r"distill.temperature must lie in 0.01\.\.10000, got 0"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Distill(**options)
