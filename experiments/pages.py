"""Pages made from records: printed, written where told to, or compared with what is there."""

from pathlib import Path

from absl import flags

from alexnet_jax.console import say


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
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        say(f"written: {path}")
    else:
        print(text, end="")
    return 0


def is_current(path: Path, text: str) -> bool:
    """Returns whether the file holds the text."""
    return path.exists() and path.read_text() == text
