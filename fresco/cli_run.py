"""`fresco run`. Nothing heavy is imported before it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fresco.cli_parts import (
    MAX_SEED,
    clear_errors,
    console,
    given_options,
    named_tasks,
    progress_bar,
)

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change of the recipe, such as stages[0].steps=4; repeatable."),
]


def run(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe, path of a YAML file, or a picture to repeat.")
    ],
    model: Annotated[str, typer.Option(help="reference, or a pipeline's directory.")] = "reference",
    prompt: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    change: Changes = None,
    out: Annotated[Path, typer.Option(help="Directory of the pictures.")] = Path("fresco-run"),
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the first picture's noise.")
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option()] = None,
    height: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=1)] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a video.")] = None,
    dtype: Annotated[str, typer.Option(help="Of all weights: float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Make pictures or videos by a recipe; each says in its metadata how it can be made again."""
    with clear_errors():
        with console.status("Loading"):
            from fresco.errors import FrescoError
            from fresco.output import make_directory
            from fresco.overrides import override
            from fresco.pictures import (
                PictureRequest,
                differences,
                load_pipe,
                made_with,
                make_picture,
                read_made_by,
                read_request,
            )
            from fresco.recipe import load_recipe

            if recipe.endswith(".png"):
                where, fix = "fresco run PICTURE", "The picture says how it was made."
                given = given_options(context) - {"recipe", "out"}
                more = sorted("--set" if name == "change" else f"--{name}" for name in given)
                if more:
                    raise FrescoError(where, "no option but --out", ", ".join(more), fix)
                requests = [read_request(Path(recipe))]
            else:
                if not prompt:
                    fix = 'Say what to show: --prompt "a red ring".'
                    raise FrescoError("fresco run RECIPE", "at least one --prompt", "none", fix)
                checked = override(load_recipe(recipe), change or ())
                content = checked.model_dump(mode="json", by_alias=True, exclude_unset=True)
                first = PictureRequest(
                    model if model == "reference" else str(Path(model).resolve()),
                    content,
                    prompt[0],
                    seed,
                    steps,
                    guidance,
                    height,
                    width,
                    dtype,
                    device,
                    frames,
                ).with_baseline(checked)
                requests = [
                    replace(first, prompt=each, seed=seed + i) for i, each in enumerate(prompt)
                ]
            make_directory("fresco run", out, "--out")
            pipe = load_pipe(requests[0].model, requests[0].dtype, requests[0].device)
            made_by = read_made_by(Path(recipe)) if recipe.endswith(".png") else {}
        for line in differences(made_by, made_with(pipe, requests[0])):
            console.print(f"{line}: the picture may differ.", highlight=False, soft_wrap=True)
        with progress_bar() as bar:
            advance = named_tasks(bar)
            for i, request in enumerate(requests):
                path = out / f"{i:03}_seed{request.seed}.png"
                name = request.prompt[:40]

                def on_step(step: int, name: str = name) -> None:
                    advance(name, step + 1, len(pipe.scheduler.timesteps))

                seconds = make_picture(pipe, request, path, on_step)
                bar.console.print(f"Wrote {path} ({seconds:.2f} s in the loop).", soft_wrap=True)
