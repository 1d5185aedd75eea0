"""A decoder's attention to a source: against PyTorch's and transformers' decoders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llmctl.models import ARCHITECTURES
from llmctl.models.gpt import Gpt, GptConfig
from llmctl.models.layers.cross_attention import EncoderOutput, source_mask

LENGTHS = torch.tensor([7, 4, 1])


def filled(module: nn.Module) -> nn.Module:
    """With weights and biases that are all different from zero and one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3)
    return module.eval()


def decoder(**options: object) -> Gpt:
    config = GptConfig(
        vocab_size=20, num_layers=2, hidden_size=16, num_heads=2, max_positions=16, **options
    )
    body = Gpt(config, cross_attention=True)
    filled(body)
    return body


def source() -> EncoderOutput:
    torch.manual_seed(1)
    return EncoderOutput(torch.randn(3, 7, 16), source_mask(LENGTHS, 7))


def ids(tokens: int = 5) -> Tensor:
    return torch.randint(20, (3, tokens), generator=torch.Generator().manual_seed(2))


@pytest.mark.reference
def test_blocks_equal_pytorchs_decoder():
    body = decoder(activation="gelu")
    theirs = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(
            16, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ),
        num_layers=2,
        norm=nn.LayerNorm(16),
    ).eval()
    state = {f"norm.{kind}": getattr(body.norm, kind) for kind in ("weight", "bias")}
    for n, block in enumerate(body.blocks):
        cross = block.cross_attention
        for kind in ("weight", "bias"):
            state |= {
                f"layers.{n}.{name}{joint}{kind}": value
                for name, joint, value in (
                    ("norm1", ".", getattr(block.norm_1, kind)),
                    ("self_attn.in_proj", "_", getattr(block.attention.query_key_value, kind)),
                    ("self_attn.out_proj", ".", getattr(block.attention.output, kind)),
                    ("norm2", ".", getattr(cross.norm, kind)),
                    (
                        "multihead_attn.in_proj",
                        "_",
                        torch.cat([getattr(cross.query, kind), getattr(cross.key_value, kind)]),
                    ),
                    ("multihead_attn.out_proj", ".", getattr(cross.output, kind)),
                    ("norm3", ".", getattr(block.norm_2, kind)),
                    ("linear1", ".", getattr(block.feed_forward.expand, kind)),
                    ("linear2", ".", getattr(block.feed_forward.contract, kind)),
                )
            }
    theirs.load_state_dict(state)
    read = source()
    with torch.no_grad():
        embedded = body.token_embedding(ids()) + body.position_embedding.weight[:5]
        expected = theirs(
            embedded,
            read.states_GSD,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(5),
            memory_key_padding_mask=torch.arange(7) >= LENGTHS[:, None],
        )
        torch.testing.assert_close(body(ids(), source=read), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.reference
def test_a_decoder_equals_transformers_gpt2_with_cross_attention():
    import transformers

    from llmctl.models.gpt import SPEC, to_hugging_face

    body = decoder()
    config = transformers.GPT2Config(**to_hugging_face(body.config), add_cross_attention=True)
    theirs = transformers.GPT2Model(config).eval()
    state = {
        name.removeprefix("transformer."): tensor
        for name, tensor in SPEC.export_tensors(body.state_dict(), body.config).items()
    }
    for n, block in enumerate(body.blocks):
        cross = block.cross_attention
        for ours, name in ((cross.query, "q_attn"), (cross.key_value, "c_attn"),
                           (cross.output, "c_proj")):  # fmt: skip
            state[f"h.{n}.crossattention.{name}.weight"] = ours.weight.T
            state[f"h.{n}.crossattention.{name}.bias"] = ours.bias
        state[f"h.{n}.ln_cross_attn.weight"] = cross.norm.weight
        state[f"h.{n}.ln_cross_attn.bias"] = cross.norm.bias
    theirs.load_state_dict(state)
    read = source()
    with torch.no_grad():
        expected = theirs(
            ids(),
            encoder_hidden_states=read.states_GSD,
            encoder_attention_mask=(torch.arange(7) < LENGTHS[:, None]).long(),
        ).last_hidden_state
        torch.testing.assert_close(body(ids(), source=read), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt", "llama", "nanochat"])
def test_padding_of_a_source_changes_nothing(arch: str):
    architecture = ARCHITECTURES[arch]
    config = architecture.config(
        vocab_size=20, num_layers=2, hidden_size=16, num_heads=2, max_positions=16
    )
    body = filled(architecture.build(config, cross_attention=True))
    states = torch.randn(2, 6, config.hidden_size)
    lengths = torch.tensor([6, 3])
    tokens = torch.randint(config.vocab_size, (2, 4))
    with torch.no_grad():
        both = body(tokens, source=EncoderOutput(states, source_mask(lengths, 6)))
        alone = body(tokens[1:], source=EncoderOutput(states[1:, :3]))
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [[0, 1, 2], [2, 0], [0, 0, 1, 1, 2, 2], [1, 1, 1], [0, 1, 1, 2], [2, 1, 2, 1]],
    ids=str,
)
def test_rows_that_are_selected_read_their_own_source(rows: list[int]):
    """Twice over: rows of rows."""
    body, read = decoder(), source()
    chosen = torch.tensor(rows)
    again = torch.arange(len(rows)).flip(0)
    with torch.no_grad():
        body(ids(), source=read)  # keys and values are made
        for picked in (chosen, again):
            read.select(picked)
        numbers = chosen[again]
        found = body(ids()[numbers], source=read)
        whole = source()
        expected = body(ids(), source=whole)[numbers]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_initial_state_is_added_to_the_first_token():
    body = decoder()
    state = torch.randn(3, 16)
    read, started = source(), source()
    started.initial_state_GD = state
    with torch.no_grad():
        found = body(ids(), source=started)
        embedding = body.token_embedding.weight.clone()
        # One row at a time, with the state in the embedding of a token that comes first only.
        for row in range(3):
            first, rest = ids()[row, 0], ids()[row, 1:]
            assert first not in rest
            body.token_embedding.weight[first] += state[row]
            torch.testing.assert_close(
                body(ids(), source=read)[row], found[row], rtol=1e-5, atol=1e-5
            )
            body.token_embedding.weight.copy_(embedding)
