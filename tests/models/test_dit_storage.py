"""Folders written by diffusers load here, and ours load there, bit for bit."""

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from robuq.config import ConfigError, ModelConfig, model_preset
from robuq.models import build_dit, diffusers_state, load_dit, save_dit
from robuq.models.build import diffusers_sizes

CONFIG = ModelConfig(
    image_size=8, in_channels=4, learned_variance=True, width=32, num_layers=3, num_heads=2, num_classes=5
)
FILE = "diffusion_pytorch_model"


def random_dit(config=CONFIG):
    model = build_dit(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


def diffusers_twin(model):
    reference = DiTTransformer2DModel(**model.config)
    reference.load_state_dict(diffusers_state(model))
    return reference.eval()


def arguments():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([0, 500, 999]), torch.tensor([0, 4, 5])


@pytest.fixture
def folder(tmp_path):
    """As diffusers itself saves it."""
    diffusers_twin(random_dit()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(model(*arguments()), other(*arguments()))


def test_loads_what_diffusers_saves(folder):
    model = load_dit(folder)
    assert not model.training
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in model.parameters())
    assert_same(model, random_dit())


def test_loads_the_pipeline_layout_with_fields_of_older_classes(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    older = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "use_linear_projection": False}
    (folder / "config.json").write_text(json.dumps(config | older))
    (tmp_path / "pipeline").mkdir()
    folder.rename(tmp_path / "pipeline" / "transformer")
    assert_same(load_dit(tmp_path / "pipeline"), random_dit())


def test_loads_shards(tmp_path):
    diffusers_twin(random_dit()).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(load_dit(tmp_path), random_dit())


def test_loads_a_bin_file_and_half_precision(tmp_path):
    reference = diffusers_twin(random_dit())
    reference.save_pretrained(tmp_path)
    (tmp_path / f"{FILE}.safetensors").unlink()
    torch.save({name: tensor.half() for name, tensor in reference.state_dict().items()}, tmp_path / f"{FILE}.bin")
    loaded, expected = load_dit(tmp_path).state_dict(), random_dit().state_dict()
    assert all(torch.equal(loaded[name], expected[name].half().float()) for name in expected)


def test_diffusers_loads_what_we_save(tmp_path):
    model = random_dit()
    save_dit(model, tmp_path / "new" / "folder")
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "new" / "folder", local_files_only=True).eval()
    expected = diffusers_twin(model)
    assert theirs.config.norm_eps == 1e-5
    saved, wanted = theirs.state_dict(), expected.state_dict()
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], wanted[name]) for name in wanted)
    assert torch.equal(theirs(*arguments()).sample, expected(*arguments()).sample)
    assert_same(load_dit(tmp_path / "new" / "folder"), model)


def test_loading_leaves_the_global_random_state(folder):
    before = torch.get_rng_state()
    load_dit(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_embedders_that_differ_are_refused(folder):
    state = load_file(folder / f"{FILE}.safetensors")
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_2.weight"
    state[name][3, 4] += 1e-3
    save_file(state, folder / f"{FILE}.safetensors")
    with pytest.raises(ValueError, match=f"{name} differs from block 0's"):
        load_dit(folder)


def test_weights_that_do_not_fit_are_refused(folder):
    state = load_file(folder / f"{FILE}.safetensors")
    kept = state.pop("proj_out_2.bias")
    save_file(state, folder / f"{FILE}.safetensors")
    with pytest.raises(ValueError, match=r"proj_out_2.bias is None, its config.json makes it \(32,\)"):
        load_dit(folder)
    save_file(state | {"proj_out_2.bias": kept[:3].clone()}, folder / f"{FILE}.safetensors")
    with pytest.raises(ValueError, match=r"proj_out_2.bias is \(3,\)"):
        load_dit(folder)


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_a_pickle_with_code_is_refused(folder):
    (folder / f"{FILE}.safetensors").unlink()
    torch.save({"x": Payload()}, folder / f"{FILE}.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        load_dit(folder)


def test_broken_and_absent_files_are_named(folder, tmp_path):
    (folder / f"{FILE}.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        load_dit(folder)
    (folder / f"{FILE}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model.safetensors and no .*\.bin"):
        load_dit(folder)
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        load_dit(tmp_path / "nowhere")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no sample_size: not the configuration of a DiT"):
        load_dit(folder)


def test_build_loads_pretrained(folder):
    assert_same(build_dit(CONFIG.updated(pretrained=str(folder)), seed=9), random_dit())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 6}, "num_embeds_ada_norm 5, the configuration says 6"),
        ({"learned_variance": False}, "out_channels 8, the configuration says 4"),
        ({"num_heads": 4}, "num_attention_heads 2, the configuration says 4"),
    ],
)
def test_pretrained_sizes_must_be_the_configured_ones(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_dit(CONFIG.updated(pretrained=str(folder), **changes), seed=0)


def test_a_pretrained_folder_that_is_absent_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"model.pretrained: no config.json"):
        build_dit(CONFIG.updated(pretrained=str(tmp_path)), seed=0)


def test_a_changed_network_is_not_saved_as_a_plain_one(tmp_path):
    model = random_dit(model_preset("nano"))
    model.transformer_blocks[0].attn1.to_out = nn.Linear(32, 32)
    with pytest.raises(ValueError, match="not a plain DiT"):
        save_dit(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_sizes_name_the_configuration():
    assert diffusers_sizes(model_preset("DiT-XL/2")) == {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "num_layers": 28,
        "num_embeds_ada_norm": 1000,
    }
