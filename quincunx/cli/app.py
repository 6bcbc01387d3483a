"""The commands. What they need is imported when they run, so that help is quick."""

from __future__ import annotations

import enum
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from quincunx.engine.errors import ModelWarning, QuincunxError

app = typer.Typer(
    name="quincunx",
    help="One model, many samplers, one honest answer.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
_UsageError: type[Exception] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)


class ChainMethod(enum.StrEnum):
    """How chains run."""

    vectorized = "vectorized"
    sequential = "sequential"
    parallel = "parallel"


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="path/to/file.py:NAME, package.module:NAME, or a worked model (`quincunx models`).",
        show_default=False,
    ),
]
DataFile = Annotated[
    Path | None,
    typer.Option("--data", help="The model's arguments: .json, .csv (columns) or .npz."),
]
Precision = Annotated[bool, typer.Option("--x64/--no-x64", help="Compute in double precision.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("demo-output"),
    *,
    x64: Precision = True,
) -> None:
    """Fit two worked models; print summaries, verdicts and costs; save draws and plots."""
    from quincunx.cli.demo import run
    from quincunx.config import configure

    configure(x64=x64)
    run(out)


@app.command()
def infer(
    model: ModelName,
    data: DataFile = None,
    method: Annotated[str, typer.Option(help="See `quincunx methods`.")] = "nuts",
    out: Annotated[Path | None, typer.Option(help="Where to write the fit: .nc or .zarr.")] = None,
    num_warmup: Annotated[int, typer.Option(help="Adapting transitions of each chain.")] = 1000,
    num_samples: Annotated[int, typer.Option(help="Draws kept of each chain.")] = 1000,
    num_chains: Annotated[int, typer.Option(help="Number of chains.")] = 4,
    key: Annotated[int, typer.Option(help="Seed.")] = 0,
    thinning: Annotated[int, typer.Option(help="Keep one of so many transitions.")] = 1,
    chain_method: Annotated[
        ChainMethod, typer.Option(help="All at once, one by one, or spread over devices.")
    ] = ChainMethod.vectorized,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method; repeatable."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save the run here as it goes on.", show_default=False),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write draws here (.zarr) while sampling."),
    ] = None,
    until_ess: Annotated[
        float | None,
        typer.Option(metavar="N", help="Stop at this effective sample size.", show_default=False),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Stop after this time of sampling.", show_default=False),
    ] = None,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --checkpoint, if there is one.")
    ] = False,
    moments: Annotated[
        bool, typer.Option("--moments", help="Keep figures of all draws and few of the draws.")
    ] = False,
    x64: Precision = True,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the verdict and nothing else.")
    ] = False,
) -> None:
    """Draw from the posterior of a model; print summary, verdict and costs; save the draws."""
    from quincunx.cli import inputs, report
    from quincunx.config import configure
    from quincunx.inference import Kind
    from quincunx.inference import infer as run
    from quincunx.inference.progress import reporting
    from quincunx.inference.stopping import INTERRUPTED

    configure(x64=x64)
    if out is not None:
        report.prepare(out)
    inputs.check_resumption(checkpoint, resume=resume)
    place = inputs.read_store(store, moments=moments)
    until = inputs.read_until(until_ess, seconds)
    chosen = inputs.read_method(method, settings or [])
    target, arguments = inputs.read_model(model, data)
    with reporting(f"{chosen.name} on {model}", progress=not quiet) as progress:
        fit = run(
            target,
            arguments,
            chosen,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            key=key,
            thinning=thinning,
            chain_method=chain_method.value,
            store=place,
            checkpoint=checkpoint,
            resume=resume,
            until=until,
            progress=progress,
        )
    if not quiet and fit.posterior.sizes["draw"]:
        typer.echo(report.table(fit, rows=50) + "\n")
        if moments:
            typer.echo("of all draws:\n" + report.moments(fit, rows=50) + "\n")
    typer.echo(str(fit.verdict))
    if not quiet:
        typer.echo(report.costs(fit))
        if fit.kind is Kind.WEIGHTED:
            typer.echo(report.evidence(fit))
    if out is not None:
        fit.save(out)
        if not quiet:
            typer.echo(f"written: {out}")
    if fit.verdict.outcome == INTERRUPTED:
        raise typer.Exit(130)


@app.command()
def compare(
    model: ModelName,
    data: DataFile = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="All that can run by default.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A method, or a worked model with trusted answers.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Where to write a report.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write table and fits: .nc.", show_default=False)
    ] = None,
    num_warmup: Annotated[int, typer.Option(help="Adapting transitions of each chain.")] = 1000,
    num_samples: Annotated[int, typer.Option(help="Draws kept of each chain.")] = 1000,
    num_chains: Annotated[int, typer.Option(help="Number of chains.")] = 4,
    key: Annotated[int, typer.Option(help="Seed.")] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Stop each after this time.", show_default=False),
    ] = None,
    *,
    x64: Precision = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Judge methods side by side on one model; print the table, and write a report."""
    import quincunx as qx
    from quincunx.cli import inputs, report

    qx.configure(x64=x64)
    for path, suffixes in ((html, (".html", ".htm")), (out, (".nc",))):
        if path is not None:
            report.prepare(path, suffixes)
    chosen = None if methods is None else [name.strip() for name in methods.split(",")]
    target, arguments = inputs.read_model(model, data)
    found = qx.compare(
        target,
        arguments,
        chosen,
        reference=reference,
        budget=inputs.read_until(None, seconds),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        key=key,
        progress=not quiet,
    )
    report.show(found)
    if html is not None:
        typer.echo(f"written: {found.report(html)}")
    if out is not None:
        found.save(out)
        typer.echo(f"written: {out}")
    if found.interrupted:
        raise typer.Exit(130)


@app.command(name="report")
def write_report(
    fit: Annotated[Path, typer.Argument(help="A fit (.nc, .zarr) or a comparison (.nc).")],
    html: Annotated[
        Path | None,
        typer.Option(help="Where to write; beside the fit by default.", show_default=False),
    ] = None,
) -> None:
    """Write a fit, or a comparison, as one HTML page."""
    from quincunx.cli import inputs, report

    path = fit.with_suffix(".html") if html is None else html
    report.prepare(path, (".html", ".htm"))
    typer.echo(f"written: {inputs.read_saved(fit).report(path)}")


@app.command()
def explain(model: ModelName, data: DataFile = None, *, x64: Precision = True) -> None:
    """Show a model's sites, shapes, plates and structure, and the methods that can run on it."""
    import quincunx as qx
    from quincunx.cli import inputs

    qx.configure(x64=x64)
    target, arguments = inputs.read_model(model, data)
    typer.echo(str(qx.explain(target, arguments)).rstrip())
    for name, row in qx.applicable(target, arguments).to_dict("index").items():
        answer = "can run" if row["applies"] else f"cannot run: {row['missing']}"
        typer.echo(f"Method '{name}' {answer}.".replace("..", "."))


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def launch(
    script: Annotated[
        Path, typer.Argument(help="A script that calls `qx.distributed.initialize()` first.")
    ],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many processes.")] = 2,
    devices_per_process: Annotated[
        int | None,
        typer.Option(min=1, help="Devices of each on a processor.", show_default=False),
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder for a log of each rank.")] = Path("logs"),
) -> None:
    """Run a script in several processes on this machine, which end together."""
    from quincunx.cli import inputs
    from quincunx.inference.distributed.launch import launch as start

    inputs.check_script(script)
    start(script, arguments or [], processes, devices_per_process, logs)


@app.command()
def methods() -> None:
    """List the inference methods: what their draws are, when to use them, and the paper."""
    from quincunx.inference import methods as table

    for name, row in table().iterrows():
        typer.echo(f"{name} ({row['class']}, {row['kind']}): {row['summary']}")
        typer.echo(f"    {row['citation']}")


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One of them.", show_default=False)] = None,
) -> None:
    """List the worked models, or describe one."""
    from quincunx import models as catalogue
    from quincunx.cli import inputs, report

    if name is not None:
        worked = inputs.read_worked(name)
        typer.echo(report.worked(name, worked))
        return
    width = max(map(len, catalogue.names()))
    for entry in catalogue.names():
        typer.echo(f"{entry:<{width}}  {catalogue.describe(entry)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after `quincunx`; those of the process by default.

    Returns:
        0; 2 after a user's error, said in one line on stderr; 130 after an interruption, also
        where the draws so far were written.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    with _one_line_warnings():
        try:
            status = command.main(words, prog_name="quincunx", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except _UsageError as error:
            return _fail(error.format_message())  # pyright: ignore[reportAttributeAccessIssue]
        except QuincunxError as error:
            return _fail(str(error))
    return status if isinstance(status, int) else 0


def _fail(message: str) -> int:
    print(f"quincunx: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print the warnings that are meant for modellers without Python's file and line."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, ModelWarning):
                print(f"quincunx: warning: {message}", file=sys.stderr)
            else:
                usual(message, category, *rest, **options)

        warnings.showwarning = show
        warnings.simplefilter("always", ModelWarning)
        yield
