"""Our DiT is diffusers' DiT: same numbers, same names, one embedder."""

import copy

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from robuq.config import EMBEDDING_MODULES, FINAL_MODULES, ROLES, ModelConfig, model_preset, module_names
from robuq.models import DiT, build_dit, diffusers_state
from robuq.models.build import diffusers_sizes
from robuq.models.dit import modulated_block, modulations

LATENT = ModelConfig(
    image_size=8, in_channels=4, learned_variance=True, width=48, num_layers=3, num_heads=4, num_classes=7
)
UNCONDITIONAL = ModelConfig(width=32, num_layers=2, num_heads=2, num_classes=0)
CONFIGS = [model_preset("nano"), model_preset("digits"), LATENT, UNCONDITIONAL]


def randomised(config: ModelConfig, dtype: torch.dtype = torch.float32) -> DiT:
    """No zeros left: modulations and output say something."""
    model = build_dit(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.to(dtype)
    return model.eval()


def original(model: DiT) -> DiTTransformer2DModel:
    reference = DiTTransformer2DModel(**model.config)
    reference.load_state_dict(diffusers_state(model))
    for mine, theirs in zip(model.buffers(), reference.buffers(), strict=True):
        theirs.data = mine.data
    for parameter in reference.parameters():
        parameter.data = parameter.data.to(next(model.parameters()).dtype)
    reference.load_state_dict(diffusers_state(model))
    return reference.eval()


def inputs(config: ModelConfig, n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(n, config.in_channels, config.image_size, config.image_size, generator=generator, dtype=dtype)
    timesteps = torch.randint(1000, (n,), generator=generator)
    labels = torch.randint(config.num_classes + 1, (n,), generator=generator)
    return images, timesteps, labels


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("n", [1, 5])
def test_forward_is_that_of_diffusers(config, dtype, tolerance, n):
    model = randomised(config, dtype)
    images, timesteps, labels = inputs(config, n, dtype)
    expected = original(model)(images, timesteps, labels).sample
    assert expected.shape == (n, config.out_channels, config.image_size, config.image_size)
    assert expected.std() > 0.05  # the comparison is not one of zeros
    torch.testing.assert_close(model(images, timesteps, labels), expected, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_diffusers():
    model = randomised(LATENT, torch.float64)
    reference = original(model)
    arguments = inputs(LATENT, 3, torch.float64)
    model(*arguments).square().sum().backward()
    reference(*arguments).sample.square().sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        expected = theirs[name].grad
        if ".norm1.emb." in name:  # the shared embedder hears what each copy hears
            names = [name.replace("blocks.0.", f"blocks.{i}.") for i in range(LATENT.num_layers)]
            expected = sum(theirs[copied].grad for copied in names)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11)


def test_gradient_checkpointing_changes_nothing():
    model = randomised(LATENT, torch.float64)
    arguments = inputs(LATENT, 2, torch.float64)
    model(*arguments).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.enable_gradient_checkpointing()
    assert model.gradient_checkpointing
    model(*arguments).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_parameter_count_of_xl(shared):
    with torch.device("meta"):
        sizes = diffusers_sizes(model_preset("DiT-XL/2"))
        model = DiT(**sizes) if shared else DiTTransformer2DModel(**sizes)
    # By hand, with D = 1152: per block adaLN 6 D (D + 1), attention 4 D (D + 1), feed-forward 8 D D + 5 D.
    width, embedder = 1152, (256 + 1) * 1152 + (1152 + 1) * 1152 + 1001 * 1152
    block = 10 * width * (width + 1) + 8 * width**2 + 5 * width
    ends = (4 * 4 + 1) * width + 2 * width * (width + 1) + 32 * (width + 1)
    count = 28 * block + ends + embedder * (1 if shared else 28)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert round(count / 1e6, 1) == (674.8 if shared else 749.8)


def test_names_are_those_of_diffusers_and_of_the_precision_map():
    model = build_dit(model_preset("nano"), seed=0)
    reference = original(model)
    theirs = {name for name in reference.state_dict() if not name.startswith("transformer_blocks.1.norm1.emb.")}
    assert set(model.state_dict()) == theirs
    modules = dict(model.named_modules())
    roles = [name for block in range(2) for role in ROLES[:6] for name in module_names(block, role)]
    assert set(roles) | set(EMBEDDING_MODULES) | set(FINAL_MODULES) <= set(modules)


def test_train_mode_equals_eval_mode():
    model = randomised(model_preset("nano"))
    arguments = inputs(model_preset("nano"), 64)
    assert torch.equal(model.train()(*arguments), model.eval()(*arguments))


@pytest.mark.parametrize("config", CONFIGS)
def test_forward_is_its_steps(config):
    model = randomised(config)
    arguments = inputs(config, 3)
    expected = model(*arguments)
    for overwrite in (False, True):
        with torch.no_grad():
            x, condition = model.embed(*arguments)
            assert x.shape == (3, config.num_tokens, config.width)
            assert condition.shape == (3, config.width)
            for block in model.transformer_blocks:
                entered = x.clone()
                after = modulated_block(block, x, modulations(block, condition), overwrite=overwrite)
                assert torch.equal(x, entered)
                x = after
            assert torch.equal(model.head(x, condition), expected)


def test_every_linear_may_be_replaced():
    """Each replaced module is called, with inputs whose last (or channel) axis is the layer's."""
    config = model_preset("nano")
    model = randomised(config)
    expected = model(*inputs(config, 2))
    seen = {}

    class Wrapped(nn.Module):
        def __init__(self, name, inner):
            super().__init__()
            self.name, self.inner = name, inner

        def forward(self, x):
            seen[self.name] = tuple(x.shape)
            return self.inner(x)

    adaln = [f"transformer_blocks.{i}.norm1.linear" for i in range(2)]
    roles = ("attn1", "ff.net.0.proj", "ff.net.2")
    blocks = [f"transformer_blocks.{i}.{name}" for i in range(2) for name in roles]
    names = [*adaln, *blocks, *EMBEDDING_MODULES, *FINAL_MODULES]
    for name in names:
        model.set_submodule(name, Wrapped(name, model.get_submodule(name)))
    torch.testing.assert_close(model(*inputs(config, 2)), expected, rtol=0, atol=0)
    assert set(seen) == set(names)
    assert seen["transformer_blocks.1.attn1"] == (2, config.num_tokens, config.width)
    assert seen["transformer_blocks.1.ff.net.2"] == (2, config.num_tokens, 4 * config.width)


def test_attention_output_linear_is_called_as_a_module():
    model = randomised(model_preset("nano"))
    calls = []
    model.transformer_blocks[1].attn1.to_out[0].register_forward_hook(lambda *_: calls.append(1))
    model(*inputs(model_preset("nano"), 2))
    assert calls == [1]


def test_seed_decides_and_global_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_dit(model_preset("nano"), seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    again, other = build_dit(model_preset("nano"), seed=3).state_dict(), build_dit(model_preset("nano"), 4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["transformer_blocks.0.attn1.to_q.weight"], other["transformer_blocks.0.attn1.to_q.weight"]
    )


def test_initialisation_of_the_original_dit():
    config = ModelConfig(width=128, num_layers=1, num_heads=4, image_size=8)
    model = build_dit(config, seed=0)
    block, width = model.transformer_blocks[0], 128
    assert not model(*inputs(config, 3)).any()  # zero output
    for linear in (block.norm1.linear, model.proj_out_1, model.proj_out_2):
        assert not linear.weight.any()
        assert not linear.bias.any()
    fused = nn.Linear(width, 3 * width)  # the original's q, k, v
    bounds = {
        block.attn1.to_q: (6 / (width + len(fused.weight))) ** 0.5,
        block.attn1.to_out[0]: (6 / (2 * width)) ** 0.5,
    }
    bounds |= {block.ff.net[0].proj: (6 / (5 * width)) ** 0.5, model.pos_embed.proj: (6 / (4 + width)) ** 0.5}
    for layer, bound in bounds.items():
        largest = layer.weight.abs().max().item()
        # The largest of n >= 512 uniform draws is below (1 - eps) bound with probability (1 - eps)^n < 1e-11.
        assert bound * 0.95 < largest <= bound
    table = model.embedder.class_embedder.embedding_table.weight
    assert table.shape == (11, width)
    assert table.std().item() == pytest.approx(0.02, rel=5 / (2 * table.numel()) ** 0.5)  # five standard errors


def test_one_head_wide_tokens_and_unconditional_labels():
    model = build_dit(UNCONDITIONAL, seed=0)
    assert model.null_label == 0
    assert model.embedder.class_embedder.embedding_table.num_embeddings == 1
    assert build_dit(LATENT, seed=0).null_label == 7
    assert build_dit(LATENT, seed=0).image_shape == (4, 8, 8)


def test_a_copy_shares_nothing():
    model = randomised(model_preset("nano"))
    twin = copy.deepcopy(model)
    arguments = inputs(model_preset("nano"), 2)
    expected = model(*arguments).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(*arguments), expected)


@pytest.mark.parametrize(("name", "value"), [("dropout", 0.1), ("norm_elementwise_affine", True), ("norm_eps", 1e-6)])
def test_other_architectures_are_refused(name, value):
    with pytest.raises(ValueError, match=f"DiT with {name}={value}"):
        DiT(**diffusers_sizes(model_preset("nano")), **{name: value})
