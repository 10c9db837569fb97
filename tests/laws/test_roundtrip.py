"""A method survives being written down, copied, saved, and built without memory."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from common import attention, every_method, every_place, make, transformer

from headway import Attention, Causal, HeadShape, HeadwayError, Transformer, positions
from headway.positions import methods, parse


@every_method("text")
def test_text(spec: str) -> None:
    position = parse(spec)
    assert position.spec() == spec
    for text in (position.spec(), repr(position).replace(type(position).__name__, position.method_name(), 1)):
        again = parse(text)
        assert type(again) is type(position)
        assert again.hyperparameters() == position.hyperparameters()
    assert parse(f"  {spec} ").hyperparameters() == position.hyperparameters()
    assert repr(eval(repr(position), vars(positions) | methods_by_class())) == repr(position)
    fresh = make(spec).fresh()
    assert fresh.shape is None
    assert fresh.hyperparameters() == position.hyperparameters()


def methods_by_class() -> dict[str, type]:
    return {method.__name__: method for method in methods().values()}


@every_method("words")
def test_every_method_says_what_it_is(spec: str) -> None:
    position = parse(spec)
    assert position.title
    assert position.summary.endswith(".")
    assert position.paper.startswith("arXiv:")
    assert position.paper in type(position).__doc__
    assert getattr(positions, type(position).__name__) is type(position)
    assert hash(position) != hash(parse(spec))  # a module is compared by identity
    assert position != parse(spec)


@every_method("state", layers=True)
def test_state_dict_pickle_and_deepcopy(spec: str) -> None:
    module, x = attention(spec, mask=Causal()), torch.randn(2, 7, 48).double()
    expected = module(x)
    other = attention(spec, mask=Causal())
    other.load_state_dict(module.state_dict())
    for again in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(x), expected)
        assert repr(again.position) == repr(module.position)
        assert again.position.shape == module.position.shape
        assert all(a is not b for a, b in zip(again.parameters(), module.parameters(), strict=True))


@every_place("state", models=True)
def test_that_of_a_transformer(spec: str, tmp_path: Path) -> None:
    """Also saved to a folder and loaded."""
    model, tokens = transformer(spec).float(), torch.randint(17, (2, 7))
    expected, other = model(tokens), Transformer.from_config(model.config.plain()).eval()
    other.load_state_dict(model.state_dict())
    loaded = Transformer.load(model.save(tmp_path))
    for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(again(tokens), expected)
        assert repr(again) == repr(model)


@every_method("sharing", variants=False)
def test_one_object_shares_its_parameters(spec: str) -> None:
    position = make(spec, heads=4)
    first, second = (Attention(32, 4, position=position) for _ in range(2))
    assert first.position is second.position is position
    with pytest.raises(HeadwayError, match=r"^expected \w+ to be used with the widths it has, .*: make another one"):
        position.attach(HeadShape.of(64, heads=4))


@every_method("sharing", variants=False)
def test_attaching_again_changes_nothing(spec: str) -> None:
    position = make(spec, heads=4)
    before = copy.deepcopy(position.state_dict())
    position.attach(HeadShape.of(32, heads=4))
    assert all(torch.equal(value, before[name]) for name, value in position.state_dict().items())


@every_method("meta")
def test_meta_device(spec: str) -> None:
    made_on_the_meta_device(spec, "decoder")


@every_place("meta", models=True)
def test_an_encoder_decoder_on_the_meta_device(spec: str) -> None:
    made_on_the_meta_device(spec, "encoder-decoder")


def made_on_the_meta_device(spec: str, kind: str) -> None:
    """Then given memory and reset, it is the model that was made on the CPU."""
    given = {"vocab": 17, "dim": 24, "layers": 2, "heads": 3, "kv_heads": 1, "position": str(spec), "kind": kind}
    given |= getattr(spec, "config", {})
    if "latent_dim" in given:  # no key heads to share
        del given["kv_heads"]
    with torch.device("meta"):
        model = Transformer(**given)
    assert all(p.is_meta for p in (*model.parameters(), *model.buffers()))
    model.to_empty(device="cpu")
    direct = Transformer(**given)
    for each in (model, direct):
        torch.manual_seed(7)
        each.reset_parameters()
    state, expected = model.state_dict(), direct.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert len(list(model.parameters())) == len(list(direct.parameters()))  # tied parameters stay tied
    tokens = torch.randint(17, (2, 7))
    model, direct = model.eval(), direct.eval()
    source = {"source": tokens} if kind == "encoder-decoder" else {}
    assert torch.equal(model(tokens, **source), direct(tokens, **source))


@every_method("meta", variants=False)
def test_a_model_runs_on_the_meta_device(spec: str) -> None:
    with torch.device("meta"):
        model = Transformer(vocab=17, dim=24, layers=1, heads=3, position=spec)
        assert model(torch.zeros(2, 7, dtype=torch.long)).shape == (2, 7, 17)


@every_method("seed")
def test_one_seed_one_set_of_weights_for_all_methods(spec: str) -> None:
    def weights(spec: str) -> dict[str, torch.Tensor]:
        model = transformer(spec, share_position=False)
        torch.manual_seed(3)
        model.reset_parameters()
        return {name: value for name, value in model.state_dict().items() if ".position." not in name}

    ours, plain = weights(spec), weights("none")
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in ours)
