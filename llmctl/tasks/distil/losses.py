"""How far a student is from its teacher: what they answer, and what they are like inside.

    logits     T² · KL(p_T ‖ q_T),  p_T = softmax(z / T)               (Hinton et al. 2015, §2.1)
    jsd        β KL(p ‖ m) + (1 − β) KL(q ‖ m),  m = β p + (1 − β) q   (Agarwal et al. 2023, eq. 1)
    hidden     1 − cos(W h_student, h_teacher)                         (Sanh et al. 2019, §2)
    relations  KL(softmax(A Aᵀ / √d) of the teacher ‖ of the student)  (Wang et al. 2021, eq. 5)

M scored places, C choices, B texts, T tokens, D width, R relation heads, P width of a projection.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.tasks.distil.config import Divergence


def divergence(
    student_MC: Tensor,
    teacher_MC: Tensor,
    *,
    kind: Divergence = "forward",
    temperature: float = 1.0,
    jsd_weight: float = 0.5,
) -> Tensor:
    """How far the student's distribution is from the teacher's at each place (M,), in nats, times
    T². Both are given as logits, or as logarithms of probabilities."""
    log_q_MC = F.log_softmax(student_MC.float() / temperature, -1)
    log_p_MC = F.log_softmax(teacher_MC.float() / temperature, -1)
    if kind == "forward":
        found_M = _kl(log_p_MC, log_q_MC)
    elif kind == "reverse":
        found_M = _kl(log_q_MC, log_p_MC)
    else:
        log_m_MC = torch.logaddexp(
            log_p_MC + math.log(jsd_weight), log_q_MC + math.log1p(-jsd_weight)
        )
        found_M = jsd_weight * _kl(log_p_MC, log_m_MC) + (1 - jsd_weight) * _kl(log_q_MC, log_m_MC)
    return temperature**2 * found_M


def binary_divergence(
    student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL between yes and no to each of several labels, the mean over them, (B,), times T². Both are
    given as logits."""
    p_BC = torch.sigmoid(teacher_BC.float() / temperature)
    crossed_BC = F.binary_cross_entropy_with_logits(
        student_BC.float() / temperature, p_BC, reduction="none"
    )
    own_BC = F.binary_cross_entropy_with_logits(
        teacher_BC.float() / temperature, p_BC, reduction="none"
    )
    return temperature**2 * (crossed_BC - own_BC).mean(-1)


def _kl(log_a_MC: Tensor, log_b_MC: Tensor) -> Tensor:
    """KL(a ‖ b) at each place (M,). What a has no share of counts 0, as the limit is."""
    a_MC = log_a_MC.exp()
    return torch.where(a_MC > 0, a_MC * (log_a_MC - log_b_MC), 0.0).sum(-1)


def hidden_distance(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """1 − cos between hidden states of the same width, the mean over a text's tokens, (B,)."""
    apart_BT = 1 - F.cosine_similarity(student_BTD.float(), teacher_BTD.float(), dim=-1)
    return _mean(apart_BT, mask_BT)


def relation_distance(
    student_BTP: tuple[Tensor, Tensor],
    teacher_BTP: tuple[Tensor, Tensor],
    mask_BT: Tensor,
    *,
    heads: int,
    causal: bool,
) -> Tensor:
    """KL between what tokens are to one another in each relation head, the mean over heads and a
    text's tokens, (B,).

    student_BTP, teacher_BTP: two of queries, keys and values, or one twice; each model's have a
    width of its own, which ``heads`` divides. causal: a token is related to those up to it.
    """
    seen_BTT = mask_BT[:, None, :]
    if causal:
        T = mask_BT.shape[1]
        seen_BTT = seen_BTT & torch.ones(T, T, dtype=torch.bool, device=mask_BT.device).tril()
    log_q_BRTT = _relations(*student_BTP, seen_BTT, heads)
    log_p_BRTT = _relations(*teacher_BTP, seen_BTT, heads)
    return _mean(_kl(log_p_BRTT, log_q_BRTT).mean(1), mask_BT)


LEAST = -1e9
"""What stands for −∞, so that a difference of two is 0 and no nan."""


def _relations(first_BTP: Tensor, second_BTP: Tensor, seen_BTT: Tensor, heads: int) -> Tensor:
    """Logarithms of softmax(A Bᵀ / √d) by relation heads, (B, R, T, T), in fp32."""
    first_BRTP, second_BRTP = (
        part.float().unflatten(-1, (heads, -1)).transpose(1, 2) for part in (first_BTP, second_BTP)
    )
    score_BRTT = first_BRTP @ second_BRTP.transpose(-1, -2) / math.sqrt(first_BRTP.shape[-1])
    return F.log_softmax(score_BRTT.masked_fill(~seen_BTT[:, None], LEAST), -1)


def _mean(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over each text's tokens (B,)."""
    return (value_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)


def similarity_distance(student_ED: Tensor, teacher_EF: Tensor) -> Tensor:
    """The mean squared difference of each text's cosines with the others of the batch, (E,). Both
    are vectors of length 1, each model's of its own width."""
    apart_EE = (student_ED @ student_ED.T - teacher_EF @ teacher_EF.T).square()
    others = max(len(apart_EE) - 1, 1)
    return (apart_EE.sum(1) - apart_EE.diagonal()) / others
