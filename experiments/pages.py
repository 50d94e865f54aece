"""Pages made from records: printed, written where told to, or compared with what is there."""

from pathlib import Path

from absl import flags

from alexnet_jax.console import say
from alexnet_jax.records import files


def define_flags(what: str) -> None:
    """Defines --write and --check of a command that makes `what`."""
    flags.DEFINE_boolean("write", False, f"Write {what} anew.")
    flags.DEFINE_boolean("check", False, f"Only compare {what} with the records.")


def answer(path: Path, text: str) -> int:
    """Prints, writes or checks the page at `path`, as the flags say; returns the exit status."""
    if flags.FLAGS.check:
        same = is_current(path, text)
        say(f"{path} {'is' if same else 'is not'} what the records say")
        return 0 if same else 1
    if flags.FLAGS.write:
        write(path, text)
        say(f"written: {path}")
    else:
        print(text, end="")
    return 0


def is_current(path: Path, text: str) -> bool:
    """Returns whether the file holds the text."""
    return path.exists() and path.read_text("utf-8") == text


def write(path: Path, text: str) -> None:
    """Replaces the page at `path`, in UTF-8 anywhere; on a full disk the old one stays."""
    path.parent.mkdir(exist_ok=True)
    files.replace(path, text.encode())
