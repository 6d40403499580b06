import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import fresco
from fresco.pictures import PictureError, load_pipe
from fresco.reference import MAX_TOKENS, PIPELINE, WeightsError, load, text
from fresco.reference.bench import How, sample
from tests.reference_parts import assemble_untrained

PARTS = {"transformer", "vae", "text_encoder", "text_encoder_2"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return assemble_untrained(tmp_path_factory.mktemp("run"))


def test_the_assembled_pipeline_loads_and_draws_256_px(pipeline):
    pipe = load(pipeline)
    assert type(pipe).__name__ == "FluxPipeline"
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
    images = sample(pipe, ["a red ring at the top"], 1, How())
    assert images.shape == (1, 3, 256, 256)


@pytest.mark.parametrize("folder", [None, PIPELINE], ids=["assembled", "shipped"])
def test_all_weights_are_stored_in_16_bits(pipeline, folder):
    files = sorted((folder or pipeline).rglob("*.safetensors"))
    assert {file.parent.name for file in files} == PARTS
    stored = {t.dtype for file in files for t in load_file(file).values()}
    assert stored <= {torch.bfloat16, torch.float16}


def test_loading_shows_no_bars_and_leaves_those_of_others(pipeline, capfd):
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    load(pipeline)
    assert "%|" not in capfd.readouterr().err
    assert of_diffusers.is_progress_bar_enabled()
    assert of_transformers.is_progress_bar_enabled()


def test_another_dtype_is_that_of_all_weights(pipeline):
    pipe = load(pipeline, torch.bfloat16)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert part.dtype == torch.bfloat16


def test_pictures_do_not_depend_on_the_batch_size(pipeline):
    pipe, prompts = load(pipeline), ["a red ring at the top", "a blue box", "a circle"]
    together = sample(pipe, prompts, 1, How())
    alone = [sample(pipe, prompts[i : i + 1], 1, How(seed=i)) for i in range(len(prompts))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-3)


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
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(WeightsError, match="expected a whole FluxPipeline directory"):
        load(tmp_path)


def test_weights_that_are_cut_short_are_refused(tmp_path):
    folder = assemble_untrained(tmp_path)
    for part in ("text_encoder", "transformer"):
        (file,) = (folder / part).glob("*.safetensors")
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(WeightsError, match="expected a whole FluxPipeline directory"):
            load(folder)
        with pytest.raises(PictureError, match="expected a whole pipeline"):
            load_pipe(str(folder))
        file.write_bytes(whole)
    assert load(folder)


def test_loading_asks_for_as_many_tokens_as_training_did():
    assert MAX_TOKENS == text.MAX_TOKENS


def test_importing_the_package_imports_no_training_and_no_torch():
    heavy = "('torch', 'diffusers', 'fresco.reference.train')"
    code = f"import sys, fresco.reference; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_shipped_files_are_at_most_32_mib():
    files = [path for path in PIPELINE.parent.rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) <= 32 * 2**20


@pytest.mark.parametrize("stages", [[], [{"cell": 1, "steps": 2}]], ids=["none", "all fine"])
def test_the_shipped_model_is_untouched_by_identity_recipes_and_restored_by_others(stages):
    pipe = load()

    def draw():
        return pipe(
            "a red ring at the top",
            num_inference_steps=2,
            max_sequence_length=MAX_TOKENS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    plain = draw()
    with fresco.accelerate(pipe, {"schema": 1, "model": "any", "stages": stages}):
        assert draw().equal(plain)
    with fresco.accelerate(pipe, "reference_5x") as accelerated:
        assert not draw().equal(plain)
        assert [step.tokens for step in accelerated.report.steps] == [256, 1024]
    assert draw().equal(plain)
