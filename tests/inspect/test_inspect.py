"""What inspect shows is what the model computes: scores, weights, parts and updates."""

from __future__ import annotations

import pytest
import torch
from common import attention, close, every_method, transformer

import headway
from headway import Attention, Causal, Documents, HeadwayError, KVCache, Window
from headway.inspect import Trace, record, split, watch
from headway.inspect.head import Head
from headway.inspect.watch import size_beforehand
from headway.training.batches import TextBatches
from headway.training.loop import Trainer
from headway.training.settings import TrainSettings


@every_method("inspect", variants=False)
def test_parts_add_up_and_weights_make_the_output(spec: str) -> None:
    model = transformer(spec, norm="layer").eval()
    outputs: list[torch.Tensor] = []
    hooks = [a.core.register_forward_hook(lambda m, i, out: outputs.append(out)) for a in model.stack.attentions()]
    with record(model) as trace:
        model(torch.randint(17, (2, 9)))
    for hook in hooks:
        hook.remove()
    assert len(trace) == 2
    for layer, output in zip(trace, outputs, strict=True):
        parts = split(layer)
        close(parts.total, layer.scores())
        close(parts.content + parts.position, layer.scores())
        close(layer.output(), layer.attention.position.turn_values(output, torch.arange(9)[None], back=True))
        rows = slice(3, 6)
        close(split(layer, rows).total, layer.scores()[:, :, rows])
        close(layer.weights(rows), layer.weights()[:, :, rows])
        close(layer.row(5, 1, batch=1), layer.weights()[1, 1, 5])


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize(
    "given", [{}, {"post_norm": True}, {"qk_norm": True}, {"bias": True}, {"log_scale": 4}], ids=str
)
def test_embeddings_split_four_ways_exactly_in_the_first_layer(norm: str, given: dict) -> None:
    """Taking the position's share out of the residual stream by hand leaves the content's product."""
    model = transformer("learned", norm=norm, **given).eval()
    tokens = torch.randint(17, (1, 7))
    with record(model) as trace:
        model(tokens)
    layer, parts = trace[0], split(trace[0]).parts
    assert sorted(parts) == ["content·content", "content·position", "position·content", "position·position"]
    assert split(trace[0]).exact
    assert not split(trace[1]).exact
    close(sum(parts.values()), layer.scores())
    assert all(part.abs().max() > 1e-3 for part in parts.values())
    if given or norm == "layer":
        return
    residual, module = model.stack.blocks[0].attention, layer.attention
    embedded = model.embedding(tokens) * 24**0.5
    place = model.position.weight[:7][None]
    length = (embedded + place).square().mean(-1, keepdim=True).add(1e-6).sqrt()
    content, position = (x / length * residual.norm.weight for x in (embedded, place))
    for name, q, k in (("content·content", content, content), ("content·position", content, position)):
        heads = [linear(x).unflatten(-1, (3, 8)).transpose(1, 2) for linear, x in ((module.q, q), (module.k, k))]
        close(parts[name], heads[0] @ heads[1].mT * 8**-0.5)


def test_rotation_is_what_turning_changed() -> None:
    module = attention("rotary", mask=Causal())
    x = torch.randn(1, 6, 48).double()
    with record(module) as trace:
        module(x)
    plain = attention("none", mask=Causal())
    plain.load_state_dict(module.state_dict())
    with record(plain) as unturned:
        plain(x)
    parts = split(trace[0]).parts
    close(parts["content"], unturned[0].scores())
    close(parts["content"] + parts["rotation"], trace[0].scores())
    assert torch.equal(parts["rotation"].diagonal(dim1=-2, dim2=-1).abs() < 1e-9, torch.ones(1, 6, 6).bool())


def test_softcap_is_a_part() -> None:
    module = attention("t5", mask=Causal(), softcap=2.0)
    with record(module) as trace:
        module(torch.randn(1, 6, 48).double())
    parts = split(trace[0])
    assert sorted(parts.parts) == ["ByDistance", "content", "softcap"]
    close(parts.total, trace[0].scores())
    assert (parts.parts["content"] + parts.parts["softcap"]).abs().max() <= 2


def test_masks_padding_and_documents() -> None:
    module = attention("alibi", mask=Causal() & Window(3))
    pos = torch.tensor([[-1, 0, 1, 2, 0, 1]])
    with record(module) as trace:
        module(torch.randn(1, 6, 48).double(), pos=pos, mask=Documents(torch.tensor([[0, 0, 0, 0, 1, 1]])))
    layer = trace[0]
    weights, seen = layer.weights(), layer.seen()
    assert not weights.masked_select(~seen.expand_as(weights)).any()
    close(weights.sum(-1)[:, :, 1:], torch.ones(1, 6, 5).double())
    assert not weights[:, :, 0].any()
    assert layer.summary()["first"].shape == (1, 6)


def test_a_cache_is_seen_whole_but_not_split_where_keys_are_turned() -> None:
    cache, x = KVCache(), torch.randn(1, 6, 48).double()
    module = attention("rotary", mask=Causal())
    with record(module) as trace:
        module(x[:, :5], cache=cache)
        module(x[:, 5:], cache=cache)
    assert (trace[1].queries, trace[1].keys) == (1, 6)
    with record(module) as whole:
        module(x)
    close(trace[1].weights(), whole[0].weights(slice(5, 6)))
    with pytest.raises(HeadwayError, match=r"^expected unrotated keys, got keys from a cache"):
        split(trace[1])
    other = attention("t5", mask=Causal())
    with record(other) as trace:
        other(x[:, :5], cache=(cache := KVCache()))
        other(x[:, 5:], cache=cache)
    close(split(trace[1]).total, trace[1].scores())


def test_summaries_know_the_heads() -> None:
    """Heads built to attend to the previous token, to the first, and to all equally."""
    module = Attention(32, 4, mask=Causal()).double()
    with torch.no_grad():
        for linear in (module.q, module.k):
            linear.weight.zero_()
    with record(module) as trace:
        module(torch.randn(1, 200, 32).double())
    found, steps = trace.summary(), torch.arange(1, 201).double()
    close(found["entropy"][0, 0], steps.log().mean().expand(4))
    close(found["first"][0, 0], (1 / steps).mean().expand(4))
    close(found["previous"][0, 0], (1 / steps[1:]).sum().div(200).expand(4))
    close(found["distance"][0, 0], ((steps - 1) / 2).mean().expand(4))


def test_a_head_looks_at_the_keys_of_its_group() -> None:
    module = attention("rotary", 6, 2, mask=Causal())
    with record(module) as trace:
        module(torch.randn(1, 7, 48).double())
    for index in range(6):
        head = Head(trace[0], index)
        close(head.x @ head.matrices.k, head.k)
        close(head.x @ head.matrices.v, head.v)
        close(head.scores, head.mapped_q @ head.mapped_k.T * module.scale)
        close(head.weights @ head.v, head.output)


def test_a_long_text_is_looked_at_a_row_at_a_time() -> None:
    module = Attention(16, 2, position="t5", mask=Causal())
    with torch.no_grad(), record(module) as trace:
        module(torch.randn(1, 32768, 16))
    row = trace[0].row(32767, 1)
    assert row.shape == (32768,)
    assert row.sum().item() == pytest.approx(1, abs=1e-4)
    assert split(trace[0], slice(30000, 30001)).total.shape == (1, 2, 1, 32768)


def test_nothing_stays_behind() -> None:
    module = transformer("rotary")
    tokens = torch.randint(17, (1, 5))
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]

    def broken() -> Trace:
        with record(module) as trace:
            module(tokens)
            raise RuntimeError(trace)

    with pytest.raises(RuntimeError) as stopped:
        broken()
    trace = stopped.value.args[0]
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()] == before
    module(tokens)
    assert len(trace) == 2
    assert not any(layer.call.q.requires_grad or layer.x.requires_grad for layer in trace)


def test_encoder_and_decoder() -> None:
    model = transformer("sinusoidal", kind="encoder-decoder").eval()
    with record(model) as trace:
        model(torch.randint(17, (1, 5)), source=torch.randint(17, (1, 8)))
    assert [layer.name.split(".")[0] for layer in trace] == ["encoder"] * 2 + ["stack"] * 4
    assert [tokens.shape[1] for tokens in trace.tokens] == [8, 5]
    cross = trace["stack.blocks.0.cross.part"]
    assert (cross.queries, cross.keys) == (5, 8)
    for layer in trace:
        close(split(layer).total, layer.scores())
    assert split(trace["stack.blocks.0.attention.part"]).exact


def test_what_cannot_be_recorded() -> None:
    with pytest.raises(
        HeadwayError, match=r"^expected a model with headway.Attention inside, or one of transformers, got "
    ):
        record(torch.nn.Linear(2, 2)).__enter__()
    with record(attention("none")) as trace:
        pass
    with pytest.raises(HeadwayError, match=r"^expected a layer below 0, got 0$"):
        trace[0]
    with pytest.raises(HeadwayError, match=r"^expected the name of a recorded attention \(none, .*, got 'x'$"):
        trace["x"]


def trainer(optimizer: str, steps: int = 8) -> Trainer:
    model = transformer("rotary", vocab=256).float()
    settings = TrainSettings(steps=steps, batch=2, length=8, optimizer=optimizer, lr=0.01, warmup=0, clip=0.5)
    return Trainer(model, TextBatches(torch.arange(500) % 251, 8, 2), settings)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_watch_sees_what_the_optimiser_did(optimizer: str) -> None:
    made = trainer(optimizer)
    module = made.model.stack.attentions()[1]
    first = module.q.weight.detach().clone()
    with watch(made.model, every=3) as watched:
        made.run()
    assert watched.steps == [0, 3, 6]
    name = "stack.blocks.1.attention.part"
    taken = watched[0][name, "q"]
    assert torch.equal(taken.weight, first)
    later = watched[3][name, "q"]
    assert not torch.equal(later.weight, first)
    head = later.head(2, heads=3)
    assert torch.equal(head.weight, later.weight[16:])
    assert head.gradient is not None
    if optimizer == "sgd":
        close(taken.update, -0.01 * taken.gradient, 1e-7)
        assert list(taken.state) == ["momentum_buffer"]
    else:
        assert sorted(taken.state) == ["exp_avg", "exp_avg_sq"]
        decay = 0.01 * 0.1 * first if optimizer == "adamw" else 0
        close(taken.update, -0.01 * taken.gradient / (taken.gradient.abs() + 1e-8) - decay, 1e-6)
    assert len(watched[6]) == 6


def test_watching_changes_nothing_and_keeps_to_its_room() -> None:
    plain, seen = trainer("adam", 40), trainer("adam", 40)
    seen.model.load_state_dict(plain.model.state_dict())
    with watch(seen.model, every=1, room=200_000) as watched:
        seen.run()
    plain.run()
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), seen.model.parameters(), strict=True))
    assert watched.size <= 200_000
    assert watched.every > 1
    assert all(step % watched.every == 0 for step in watched.steps)
    with pytest.raises(HeadwayError, match=r"^expected a recorded step \(0, "):
        watched[1]


def test_the_size_is_known_beforehand() -> None:
    made = trainer("adam")
    with watch(made.model, every=3) as watched:
        made.run()
    assert watched.size == size_beforehand(made.model, steps=8, every=3)
    with pytest.raises(HeadwayError, match=r"^expected every of at least 1 step, got 0$"):
        watch(made.model, every=0).__enter__()


def test_it_is_there_without_an_import() -> None:
    assert headway.inspect.record is record
