"""T5 and its relatives: the bias as a table by distance, the same numbers, nothing n²."""

from __future__ import annotations

import copy

import family_laws
import pytest
import torch
import transformers as hf
from models import T5_SIZES, accelerated, as_exact, far, padding, randomised, same, same_generation, tokens

from headway.parallel.process import _leave

SMALL = {**T5_SIZES, "d_model": 40, "decoder_start_token_id": 0, "pad_token_id": 0}
PAIRS = {
    "t5": (hf.T5Config, hf.T5ForConditionalGeneration, {}),
    "mt5": (hf.MT5Config, hf.MT5ForConditionalGeneration, {"feed_forward_proj": "gated-gelu"}),
    "umt5": (hf.UMT5Config, hf.UMT5ForConditionalGeneration, {}),
    "switch": (
        hf.SwitchTransformersConfig,
        hf.SwitchTransformersForConditionalGeneration,
        {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2},
    ),
    "longt5": (hf.LongT5Config, hf.LongT5ForConditionalGeneration, {"local_radius": 7}),
}


def pair(name="t5", **options):
    config, model, more = PAIRS[name]
    return randomised(model(config(**SMALL | more | options)))


def logits(side="right", queries=31, keys=47, **more):
    given = {
        "input_ids": tokens(2, keys),
        "attention_mask": padding(2, keys, side),
        "decoder_input_ids": tokens(2, queries, seed=1),
    }
    return lambda model: model(**given | more).logits


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_every_gradient(name, side):
    same(pair(name), logits(side))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_from_either_implementation(implementation):
    model = pair()
    model.set_attn_implementation(implementation)
    same(model, logits())
    assert model.config._attn_implementation == implementation


def test_one_token_and_no_mask():
    model = pair()
    same(model, lambda m: m(input_ids=tokens(1, 1), decoder_input_ids=tokens(1, 1)).logits)
    same(model, lambda m: m(input_ids=tokens(2, 30), decoder_input_ids=tokens(2, 25)).logits)


def test_a_mask_with_four_axes():
    model = pair()
    mask = torch.rand(2, 1, 47, 47, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[..., 0] = True
    additive = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    same(model.encoder, lambda m: m(input_ids=tokens(2, 47), attention_mask=additive)[0])


@pytest.mark.parametrize("name", ["t5", "umt5"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_generation_keeps_the_bias_past_the_cache(name, how):
    same_generation(pair(name), 30, "right", 30, **how)


def test_decoding_by_parts_is_one_pass():
    model = pair()
    ids, words = tokens(2, 30), tokens(2, 29, seed=1)
    with accelerated(model), torch.no_grad():
        whole = model(input_ids=ids, decoder_input_ids=words).logits
        state, parts = None, []
        for start, end in ((0, 9), (9, 22), (22, 23), (23, 29)):
            step = model(input_ids=ids, decoder_input_ids=words[:, start:end], cache=state, use_cache=True)
            state = step.cache
            parts.append(step.logits)
    assert far(torch.cat(parts, 1), whole) < 1e-10


def test_attentions_are_the_models_own():
    model = pair(num_layers=1)
    given = {"input_ids": tokens(1, 30), "decoder_input_ids": tokens(1, 25), "output_attentions": True}
    model.set_attn_implementation("eager")
    expected = model(**given)
    with accelerated(model):
        found = model(**given)
        assert model(**given | {"output_attentions": False}).encoder_attentions is None
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert far(found[name][0], expected[name][0]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_as_exact_as_the_models_own(dtype):
    as_exact(pair(), logits(), dtype)


def test_autocast():
    model = pair().float()
    truth = logits()(copy.deepcopy(model).double()).detach()
    run = logits()
    with torch.autocast("cpu", torch.bfloat16):
        own = far(run(model).detach(), truth)
        with accelerated(model):
            assert far(run(model).detach(), truth) <= 2 * own


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model = pair().train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    same(model, logits(use_cache=False))


def test_no_bias_for_every_pair_of_tokens():
    """Nothing is made that is as large as one head's scores, and the model's own code is seen to make it."""
    model = randomised(hf.T5EncoderModel(hf.T5Config(**SMALL)), torch.float32)
    n = 700

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor):
                    self.seen = max(self.seen, x.untyped_storage().nbytes() // x.element_size())
            return out

    def largest():
        with Largest() as spy:
            model(input_ids=tokens(1, n))[0].sum().backward()
        return spy.seen

    assert largest() >= n * n
    with accelerated(model):
        assert largest() < n * n / 4


def test_copies_pickles_and_files(tmp_path):
    model = pair()
    family_laws.same_files(model, tmp_path)
    family_laws.same_copies(model, logits())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it by its old name
def test_adapters_and_hooks():
    from peft import LoraConfig, get_peft_model

    seen = []
    adapted = get_peft_model(
        pair().train(), LoraConfig(target_modules=["q", "v", "relative_attention_bias"], r=2, init_lora_weights=False)
    ).double()
    model = adapted.get_base_model()
    same(model, logits())
    with accelerated(model):
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.register_forward_hook(
            lambda *_: seen.append(1)
        )
        logits()(model)
    assert seen


@pytest.mark.filterwarnings("ignore")  # Trainer warns of what this machine lacks
def test_trainer_learns_the_same(tmp_path):
    rows = [{"input_ids": tokens(1, 24, seed=i)[0], "labels": tokens(1, 9, seed=i + 50)[0]} for i in range(8)]

    def losses(model):
        options = hf.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=4,
            logging_steps=1,
            learning_rate=1e-2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            gradient_accumulation_steps=2,
        )
        trainer = hf.Trainer(model=model, args=options, train_dataset=rows)
        trainer.train()
        return torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])

    model = pair()
    expected = losses(copy.deepcopy(model))
    with accelerated(model):
        found = losses(model)
    assert len(found) == 4
    assert found[0] != found[-1]
    assert torch.allclose(found, expected, rtol=0, atol=2e-4)  # Trainer rounds to four digits


def test_wrapped_for_many_processes(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        model = pair()
        expected = logits()(model)
        with accelerated(model):
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            found = logits()(wrapped)
            found.sum().backward()
        assert far(found, expected) < 1e-10
        assert model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.grad is not None
    finally:
        _leave(joined=False, group=None, failed=False)  # once gloo's thread has ended its exchange
