"""One step of beam search beside the formula over the whole vocabulary."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.inference.decoding.beam import CHUNK, best_continuations, chunk_maxima, log_sums

SIZES = st.sampled_from([1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 40])


@given(
    prompts=st.integers(1, 3),
    beams=st.integers(1, 4),
    size=SIZES,
    count=st.integers(1, 9),
    scale=st.sampled_from([1.0, 40.0, 1000.0]),
    shift=st.sampled_from([0.0, -500.0, 500.0]),
    seed=st.integers(0, 2**20),
)
def test_the_best_continuations_are_those_of_all(
    prompts: int, beams: int, size: int, count: int, scale: float, shift: float, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(prompts * beams, size, generator=generator) * scale + shift
    scores_PB = torch.randn(prompts, beams, generator=generator)
    scores_PB[:, 1:].masked_fill_(torch.rand(prompts, beams - 1, generator=generator) < 0.2, -1e30)
    maxima_RC = chunk_maxima(logits_RV)
    norms_R = log_sums(logits_RV, maxima_RC.amax(-1))
    found = best_continuations(scores_PB, logits_RV, logits_RV, maxima_RC, norms_R, count)

    log_probs_RV = logits_RV.double().log_softmax(-1)
    all_PM = (log_probs_RV + scores_PB.double().flatten()[:, None]).view(prompts, -1)
    expected = all_PM.topk(min(count, beams * size))
    close = {"rtol": 1e-5, "atol": 1e-5 * max(scale, abs(shift))}
    torch.testing.assert_close(found.scores_PK.double(), expected.values, **close)
    # Where two are as good, either may come: what was found has the score that is said.
    chosen_PK = log_probs_RV[found.rows_PK, found.tokens_PK]
    torch.testing.assert_close(found.log_probs_PK.double(), chosen_PK, **close)
    again_PK = chosen_PK + scores_PB.double().flatten()[found.rows_PK]
    torch.testing.assert_close(found.scores_PK.double(), again_PK, **close)
    assert (found.rows_PK // beams == torch.arange(prompts)[:, None]).all()
    for rows, tokens in zip(found.rows_PK.tolist(), found.tokens_PK.tolist(), strict=True):
        assert len(set(zip(rows, tokens, strict=True))) == len(rows)
