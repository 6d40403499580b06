"""`fresco validate`. Nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from fresco.cli_parts import MAX_SEED, clear_errors, console, named_tasks, progress_bar, write_json

if TYPE_CHECKING:
    from fresco.pairs import Pairs
    from fresco.record import RecordConfig


def validate(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or path of a YAML file.")],
    model: Annotated[
        str | None,
        typer.Option(help="reference, or a pipeline's directory; default: mechanics, FLOPs only."),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file, one prompt per line.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the first pair's noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: of the baseline.")] = None,
    guidance: Annotated[float | None, typer.Option()] = None,
    height: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=1)] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a video.")] = None,
    dtype: Annotated[str, typer.Option(help="Of all weights: float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    floor: Annotated[
        str, typer.Option(help="Noise floor by another `precision`, by `compile`, or `none`.")
    ] = "precision",
    metric: Annotated[
        str | None, typer.Option(help="Your own, module:function of (images, prompts) -> mean.")
    ] = None,
    write: Annotated[bool, typer.Option(help="Write the record into the recipe's file.")] = True,
    json: Annotated[
        Path | None, typer.Option(help="File for the record, and for pairs on the way.")
    ] = None,
) -> None:
    """Measure a recipe, hold it to what it expects, and write the record.

    Exit code 1 if it falls short of a bound; nothing is written then.
    """
    with clear_errors():
        with console.status("Loading"):
            from fresco.output import make_place
            from fresco.pairs import ValidationError, check_floor, measure_pairs
            from fresco.pictures import PictureRequest, load_pipe
            from fresco.planner import model_of
            from fresco.planner import plan as forecast
            from fresco.recipe import known_recipes, load_recipe
            from fresco.recipe_file import check_place, write_record
            from fresco.specimen import make_specimen
            from fresco.validation import find_judge, mechanics_record, pictures_record, shortfalls

            checked, where = load_recipe(recipe), "fresco validate RECIPE"
            check_floor(floor)
            if (model is None) != (prompts is None):
                fix = "Name both, or neither for mechanics and FLOPs."
                raise ValidationError(where, "--model and --prompts together", "one", fix)
            if json:
                make_place(where, json, "--json")
            path = known_recipes().get(recipe, Path(recipe).expanduser())
            if write:
                check_place(path)
            asked = read_prompts(prompts) if prompts else ()
            picture = None
            if model is not None:
                picture = PictureRequest(
                    model, None, "", seed, steps, guidance, height, width, dtype, device, frames
                ).with_baseline(checked)
            judge = find_judge(metric, picture, asked)
            if picture is None:
                fix = "Name it MODEL_INTENT.yaml, or give both --model and --prompts."
                known = model_of(recipe, where, fix)
                found = forecast(
                    known, checked, height=height, width=width, steps=steps, frames=frames
                )
                specimen = make_specimen(known)
            else:
                pipe = load_pipe(picture.model, dtype, device)
        with progress_bar() as bar:
            advance = named_tasks(bar)

            def on_pair(pairs: Pairs) -> None:
                if json:
                    write_json(json, {"complete": False, "pairs": pairs.figures()})

            if picture is None:
                bar.add_task("mechanics", total=None)
                record = mechanics_record(specimen, checked, found)
            else:
                pairs = measure_pairs(pipe, checked, picture, asked, floor, advance, on_pair)
                record = pictures_record(pipe, checked, picture, asked, pairs, judge)
        short = shortfalls(checked.expects, record)
        content = record.model_dump(mode="json", exclude_defaults=True)
        if json:
            more = {"complete": True, "falls_short": short}
            write_json(
                json, content | more | ({} if picture is None else {"pairs": pairs.figures()})
            )
        console.print(_table(recipe, content))
        _say_noise(record)
        if picture and judge is None:
            console.print("Nobody judged: the reference judge reads squares of 256 px, 512 px, ...")
        for line in short:
            console.print(f"[bold red]falls short[/] {line}", highlight=False)
        if short:
            raise typer.Exit(1)
        if write:
            write_record(path, record)
            console.print(f"Wrote the record into {path}.", soft_wrap=True)


def read_prompts(file: Path, where: str = "fresco validate --prompts") -> tuple[str, ...]:
    """Read one prompt per line; empty lines do not count."""
    from fresco.pairs import ValidationError

    expected = "a text file with a prompt per line"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(where, expected, str(error), "Name another one.") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ValidationError(where, expected, "none", "Write at least one prompt.")
    return found


def _table(recipe: str, content: dict[str, Any]) -> Table:
    table = Table("", "", title=f"{recipe}, validated", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in content.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(name, text)
    return table


def _say_noise(record: RecordConfig) -> None:
    floor = record.noise_floor
    if floor is None:
        return
    near = "equal pictures" if floor.psnr_db is None else f"{floor.psnr_db:g} dB"
    verdict = "within" if record.is_within_noise else "beyond"
    console.print(
        f"The plain run by {floor.how} is at {near} from itself: the recipe's difference is "
        f"{verdict} the noise.",
        highlight=False,
        soft_wrap=True,
    )
