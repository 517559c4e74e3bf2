"""The command `sparse-circuits`: parse, call one function, say what was written."""

import os
import sys
import warnings

import tyro

from sparse_circuits.cli import bridge_models, check_circuits, cut_circuits, exchange, train_models
from sparse_circuits.configs import DemoConfig, TrainConfig
from sparse_circuits.errors import SparseCircuitsError
from sparse_circuits.memory import keep_freed_memory
from sparse_circuits.waiting import wait_briefly

app = tyro.extras.SubcommandApp()
for command in (
    train_models.demo,
    train_models.corpus,
    train_models.audit,
    train_models.train,
    cut_circuits.tasks,
    cut_circuits.prune,
    cut_circuits.search,
    train_models.match,
    check_circuits.verify,
    check_circuits.predict,
    bridge_models.bridge,
    bridge_models.hybrids,
    bridge_models.steer,
    bridge_models.transfer,
    cut_circuits.view,
    train_models.inspect,
    train_models.generate,
    exchange.download,
    exchange.convert,
    exchange.export,
):
    app.command(command)
app.command(name="import")(exchange.import_)


def main() -> None:
    """Run the command; an expected error is one line on stderr and exit code 1, a warning is one line too."""
    arguments = sys.argv[1:]
    keep_freed_memory()
    wait_briefly()
    as_before, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        if len(arguments) > 1 and arguments[0] in ("train", "demo") and arguments[1].endswith(".json"):
            kind = TrainConfig if arguments[0] == "train" else DemoConfig
            train_models.from_file["file"] = kind.load(arguments[1])
            arguments[1] = "file"
        elif arguments[:1] == ["demo"] and (len(arguments) == 1 or arguments[1].startswith("--")):
            arguments.insert(1, "small")
        app.cli(prog="sparse-circuits", args=arguments, config=(tyro.conf.CascadeSubcommandArgs,))
    except SparseCircuitsError as error:
        sys.exit(f"sparse-circuits: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(f"sparse-circuits: interrupted; {stopped}" if str(stopped) else "sparse-circuits: interrupted")
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has; nor may the last flush complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(f"sparse-circuits: {error}")
    finally:
        warnings.formatwarning = as_before


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    return f"sparse-circuits: warning: {message}\n"
