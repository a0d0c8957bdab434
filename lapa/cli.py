"""The command line. Each command is a function (lapa/commands): its arguments are the options, its docstring the help.

Heavy imports stay inside the commands, so `lapa --help` answers at once. Every command prints what it did, where it
wrote, and the command that comes next. What the user can mend is a LapaError: one line, exit code 1.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import tyro

from lapa.commands.data import cache, collect, convert, export
from lapa.commands.look import analyse, explore, inspect, show_list
from lapa.commands.measure import ablate, compare, demo, demo_real, evaluate, protocol, study
from lapa.commands.serve import serve
from lapa.commands.train import finetune, fit, ground, label, pretrain, quantize, stop, track, tune
from lapa.contracts import LapaError
from lapa.runtime.alone import let_go

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Start here": {"demo": demo, "demo-real": demo_real},
    "Your own videos and robot, in this order": {
        "inspect": inspect,
        "quantize": quantize,
        "explore": explore,
        "label": label,
        "pretrain": pretrain,
        "finetune": finetune,
        "evaluate": evaluate,
        "serve": serve,
    },
    "More about training": {"tune": tune, "fit": fit, "track": track, "stop": stop, "ground": ground},
    "Several runs side by side": {"compare": compare, "protocol": protocol, "study": study, "ablate": ablate},
    "What was learnt, and what there is": {"analyse": analyse, "list": show_list},
    "Data and models, in and out": {"cache": cache, "collect": collect, "convert": convert, "export": export},
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

BEGIN = """\
LAPA, Latent Action Pretraining from Videos: from video without actions to a robot policy.

Start here     lapa demo                  the whole method on this machine, ten minutes on two cores, with a report
Your videos    lapa quantize --dataset video_folder:clips/ --preset video --out runs/laq
               Each command ends by naming the next one.
All commands   lapa --help"""

# errors of a place that the user can change
UNUSABLE = (
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
MANY = ("quantize", "fit", "label", "pretrain", "finetune", "ground")  # run in many processes under torchrun


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit codes: 0 done, 1 an error the user can mend, 2 a wrong option, 130 interrupted by Ctrl-C,
    143 stopped by SIGTERM."""
    given = sys.argv[1:] if arguments is None else arguments
    if answer := ANSWERS.get(" ".join(given)):
        print(answer())
        return
    if "LAPA_PARENT" in os.environ:
        from lapa.runtime.workers import end_with_parent

        end_with_parent()
    try:
        with _tidy_end(), _processes(given[0] if given else ""):
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="lapa", description=__doc__.partition("\n")[0], args=arguments
            )
    except LapaError as error:
        sys.exit(_complain(str(error), error))
    except KeyboardInterrupt as error:
        _complain(
            "interrupted. What was finished is kept; run the same command again (with --resume where it trains).", error
        )
        sys.exit(130)
    except BrokenPipeError:  # `lapa list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = (
                f"the disk is full ({error.filename or 'while writing'}). Free some space and run the same command "
                "again (with --resume where it trains); what was finished is kept."
            )
            sys.exit(_complain(message, error))
        if error.errno == errno.EFBIG:
            message = (
                f"the disk takes no file as large as {error.filename or 'was to be written'} (a FAT disk stops at "
                "4 GB; see also ulimit -f). Choose another place (--out, or LAPA_CACHE for what is read)."
            )
            sys.exit(_complain(message, error))
        if error.errno in UNUSABLE:
            message = f"cannot use {error.filename}: {error.strerror}. Choose a place you may write to."
            sys.exit(_complain(message, error))
        raise
    finally:
        let_go()


def overview() -> str:
    """`lapa --help`: the first line of each command's docstring, in the order of use."""
    lines = ["usage: lapa COMMAND [OPTIONS]", "       lapa COMMAND --help   its options", "       lapa --version"]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<10} {(command.__doc__ or '').partition(chr(10))[0]}" for name, command in commands.items()]
    return "\n".join(lines)


def _version() -> str:
    from lapa import __version__

    return f"lapa {__version__}"


ANSWERS: dict[str, Callable[[], str]] = {
    "": lambda: BEGIN,
    "-h": overview,
    "--help": overview,
    "--version": _version,
}


@contextmanager
def _tidy_end() -> Iterator[None]:
    """SIGTERM leaves by way of every `finally`, so that nothing half written stays; training has its own way
    (training/stop.py)."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def leave(*_: object) -> None:
        os.write(2, b"lapa: stopped (SIGTERM). What was finished is kept; run the same command again.\n")
        sys.exit(128 + signal.SIGTERM)

    if mine:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _processes(command: str) -> AbstractContextManager[None]:
    """The other processes, under torchrun."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return nullcontext()
    if command not in MANY:
        raise LapaError(f"lapa {command} runs in one process, without torchrun. Many serve {', '.join(MANY)}.")
    from lapa.runtime.distributed import processes

    return processes()


def _complain(message: str, error: BaseException) -> int:
    """Tell the user, once, however many processes have failed."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from lapa.runtime.distributed import first_to_fail

        if not first_to_fail(error):
            return 1
    print(f"lapa: {message}", file=sys.stderr)
    return 1
