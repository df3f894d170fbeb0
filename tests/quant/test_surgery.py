"""quantize_ and storage, on a small real DiT."""

import pytest
import torch

from robuq.config import (
    ROLES,
    ConfigError,
    PrecisionMap,
    QuantSpec,
    Transform,
    WeightQuant,
    model_preset,
    resolve_specs,
)
from robuq.models import build_dit
from robuq.quant.attention import QuantizedAttention
from robuq.quant.storage import distinct_tensors, load_quantized, save_quantized
from robuq.quant.surgery import needs_calibration, quantize_, quantized_linears
from robuq.variants import VARIANTS, variant

NANO = model_preset("nano")


def lively_dit() -> torch.nn.Module:
    """A DiT whose zero-initialised layers are not zero, so that every layer matters."""
    model = build_dit(NANO, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return images, torch.tensor([1, 500, 999]), torch.tensor([0, 9, 10])


def test_every_name_of_every_role_exists_in_the_model() -> None:
    spec = QuantSpec(weight=WeightQuant())
    attention = variant("minmax").attention
    everything = PrecisionMap(**{role: attention if role == "attention" else spec for role in ROLES})
    specs = resolve_specs(everything, NANO.num_layers)
    modules = dict(lively_dit().named_modules())
    assert set(specs) <= set(modules)


def test_rotation_alone_changes_nothing() -> None:
    model = lively_dit()
    expected = model(*inputs())
    spec = QuantSpec(transform=Transform(kind="random_hadamard"))
    roles = [role for role in ROLES if role not in ("attention", "embeddings", "final")]
    specs = resolve_specs(PrecisionMap(**dict.fromkeys(roles, spec)), NANO.num_layers)
    quantize_(model, specs, seed=0)
    assert len(quantized_linears(model)) == 5 * NANO.num_layers
    torch.testing.assert_close(model(*inputs()), expected, rtol=1e-4, atol=1e-5)


def test_patch_embedding_timestep_embedding_and_output_can_be_quantized_too() -> None:
    model = lively_dit()
    expected = model(*inputs())
    spec = QuantSpec(weight=WeightQuant(kind="absmax", bits=8))
    quantize_(model, resolve_specs(PrecisionMap(embeddings=spec, final=spec), NANO.num_layers), seed=0)
    assert len(quantized_linears(model)) == 5
    difference = (model(*inputs()) - expected).norm() / expected.norm()
    assert 0 < difference < 0.05  # eight bits: each weight errs by at most 1/254 of its row's largest


def test_qkv_become_one_layer_with_one_quantization() -> None:
    model = lively_dit()
    quantize_(model, resolve_specs(variant("robuq_uniform"), NANO.num_layers), seed=0)
    attention = model.get_submodule("transformer_blocks.1.attn1")
    assert isinstance(attention, QuantizedAttention)
    assert attention.to_qkv.weight.shape == (3 * NANO.width, NANO.width)
    names = quantized_linears(model)
    assert {n.split(".", 2)[2] for n in names if n.startswith("transformer_blocks.0")} == {
        "attn1.to_qkv",
        "attn1.to_out",
        "ff.net.0.proj",
        "ff.net.2",
        "norm1.linear",
    }


def test_an_unknown_name_is_an_error_that_suggests_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"no module 'transformer_blocks.0.attn1.to_x' - did you mean .*to_[qkv]"):
        quantize_(lively_dit(), {"transformer_blocks.0.attn1.to_x": QuantSpec(weight=WeightQuant())}, seed=0)


def test_a_module_that_cannot_be_quantized_is_an_error() -> None:
    with pytest.raises(ValueError, match="only Linear"):
        quantize_(lively_dit(), {"transformer_blocks.0.norm3": QuantSpec(weight=WeightQuant())}, seed=0)


def test_unequal_specs_of_q_and_k_are_an_error() -> None:
    specs = resolve_specs(variant("minmax"), NANO.num_layers)
    specs["transformer_blocks.0.attn1.to_q"] = QuantSpec(weight=WeightQuant(kind="absmax", bits=4))
    with pytest.raises(ValueError, match="need equal specs"):
        quantize_(lively_dit(), specs, seed=0)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_saved_model_comes_back_bit_for_bit(name: str, tmp_path) -> None:
    model = lively_dit()
    specs = resolve_specs(variant(name, 3), NANO.num_layers)
    quantize_(model, specs, seed=4)
    for layer in quantized_linears(model).values():
        if layer.act_quantizer is not None and not layer.act_quantizer.is_calibrated:
            layer.act_quantizer.calibrate_(
                torch.randn(50, layer.in_features, generator=torch.Generator().manual_seed(0))
            )
    assert not needs_calibration(model)
    save_quantized(model, NANO, specs, 4, tmp_path)
    again = load_quantized(tmp_path)
    assert torch.equal(again(*inputs()), model(*inputs()))
    for (name_a, a), (name_b, b) in zip(distinct_tensors(model).items(), distinct_tensors(again).items(), strict=True):
        assert name_a == name_b
        assert torch.equal(a, b)
    assert not [file for file in tmp_path.iterdir() if file.suffix not in (".json", ".safetensors")]


def test_damaged_folders_are_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no description"):
        load_quantized(tmp_path)
    model = lively_dit()
    specs = resolve_specs(variant("minmax"), NANO.num_layers)
    quantize_(model, specs, seed=0)
    save_quantized(model, NANO, specs, 0, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_quantized(tmp_path)
