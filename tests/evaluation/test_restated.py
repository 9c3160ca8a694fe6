"""What a checkpoint of the treebank's recipes is said to be worth, against a second implementation of its files."""

from pathlib import Path

import pytest
import torch

from hf_vrae.data.collators import AutoencodingCollator
from hf_vrae.evaluation.likelihood import evaluate
from hf_vrae.training.arguments import parse_recipe
from hf_vrae.training.models import make_model
from tests.restated import RestatedVRAE

RECIPES = Path(__file__).parents[2] / "recipes/text/ptb"
SIZES = "--embedding_size 5 --encoder_hidden_size 8 --decoder_hidden_size 7 --latent_size 2"
MARKS = {"pad_token_id": 0, "unk_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}


@pytest.mark.parametrize("name", ["vae_annealing", "ours_noised", "ours"])
def test_bounds_are_those_of_another_implementation(name, tokenizer, tokenized, tmp_path):
    recipe = parse_recipe(["--config", str(RECIPES / f"{name}.yaml"), *SIZES.split(), "--output_dir", str(tmp_path)])
    model = make_model(recipe, vocab_size=len(tokenizer), **MARKS).eval()
    for tensor in (tensor for tensor in model.state_dict().values() if tensor.is_floating_point()):
        torch.nn.init.normal_(tensor, std=0.4)
    if name.startswith("ours"):
        torch.nn.init.uniform_(model.model.encoder.posterior.running_var, 0.5, 2)
    model.save_pretrained(tmp_path)
    data = tokenized["test"].select(range(4))  # of different lengths: together they are padded
    collator = AutoencodingCollator(tokenizer.pad_token_id)
    results = evaluate(model, data, collator, num_samples=2000, batch_size=4)

    restated, sentences = RestatedVRAE(tmp_path), [torch.tensor(ids) for ids in data["input_ids"]]
    z = torch.randn(3, 4, 2)
    log_weights = model.log_importance_weights(latents=z, **collator(data.to_list()))
    expected = torch.stack([restated.log_weights(ids, z[:, i].double()) for i, ids in enumerate(sentences)], dim=1)
    torch.testing.assert_close(log_weights, expected.float(), rtol=1e-5, atol=1e-4)

    # And no bound is needed where all of z can be summed over.
    axis = torch.arange(-7, 7, 0.2, dtype=torch.float64)
    grid, area = torch.cartesian_prod(axis, axis), 0.2**2  # [4,900, 2]
    log_weights = torch.stack([restated.log_weights(ids, grid) for ids in sentences])  # [4, 4,900]
    log_q = torch.stack([restated.posterior(ids).log_prob(grid) for ids in sentences])
    nll = -(log_weights + log_q).logsumexp(1).mean() - torch.tensor(area).log()
    neg_elbo = -(log_q.exp() * log_weights).sum(1).mean() * area
    assert results["nll_iw"] == pytest.approx(nll.item(), abs=0.03)
    assert results["neg_elbo"] == pytest.approx(neg_elbo.item(), abs=0.1)
    assert nll < neg_elbo - 0.1
