import json
import subprocess
import sys

import pytest
import torch

from fresco.reference import MAX_TOKENS, WeightsError, load, text
from fresco.reference.evaluate import Sampling, sample_pictures
from tests.reference_parts import assemble_untrained


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return assemble_untrained(tmp_path_factory.mktemp("run"))


def test_the_assembled_pipeline_loads_and_draws_256_px(pipeline):
    pipe = load(pipeline)
    assert type(pipe).__name__ == "FluxPipeline"
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
    images = sample_pictures(pipe, ["a red ring at the top"], Sampling(steps=1), lambda _: None)
    assert images.shape == (1, 3, 256, 256)


def test_another_dtype_is_that_of_all_weights(pipeline):
    pipe = load(pipeline, torch.bfloat16)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert part.dtype == torch.bfloat16


def test_pictures_do_not_depend_on_the_batch_size(pipeline):
    pipe, prompts = load(pipeline), ["a red ring at the top", "a blue box", "a circle"]
    one, two = (
        sample_pictures(pipe, prompts, Sampling(steps=1, batch=b), lambda _: None) for b in (1, 2)
    )
    assert torch.allclose(one, two, atol=1e-3)


def test_provenance_lies_beside_the_weights(pipeline):
    facts = json.loads((pipeline / "provenance.json").read_text())
    assert {"command", "steps", "seconds", "losses", "code", "versions", "hardware", "date"} <= set(
        facts
    )


def test_missing_weights_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(
        WeightsError, match=r"expected a FluxPipeline directory .* Reinstall fresco"
    ):
        load(tmp_path)


def test_loading_asks_for_as_many_tokens_as_training_did():
    assert MAX_TOKENS == text.MAX_TOKENS


def test_importing_the_package_imports_no_training_and_no_torch():
    heavy = "('torch', 'diffusers', 'fresco.reference.train')"
    code = f"import sys, fresco.reference; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
