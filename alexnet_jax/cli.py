"""Provides what every command shares: flags, --help, and one line for each mistake of the user.

ml_collections loads the configuration while flags are parsed, before `main` runs, and raises its
own exceptions. `run` turns these, and every `UserError`, into a line on stderr.
"""

import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from alexnet_jax import distributed
from alexnet_jax.config import SCHEMA, freeze, load_config_dict, present_name
from alexnet_jax.errors import UserError, local_path, nearest
from alexnet_jax.records import files
from alexnet_jax.runtime import failures, process, settings


def define_config():
    """Defines `--config` (see `load_config`) and its `--config.FIELD=VALUE` overrides.

    The flag's value is a `Config` once `run` has parsed the command line.
    """
    about = "A configuration file, or the name of a shipped one, such as default."
    try:
        argv = _with_present_names(sys.argv)
        defined = config_flags.DEFINE_config_file("config", None, about, flags.FLAGS, sys_argv=argv)
    except flags.Error as error:  # A --flagfile is read already here, before `run` is called.
        sys.exit(" ".join(str(error).replace("ERROR::", "error:").split()))
    flags.FLAGS["config"].parser = _ConfigParser()
    return defined


class _ConfigParser(flags.ArgumentParser):
    """Loads a configuration by the name of its file or of a shipped one, with one kind of error."""

    def parse(self, argument):
        return load_config_dict(argument)

    def flag_type(self):
        return "config"


class _PathParser(flags.ArgumentParser):
    """Parses a path as `errors.local_path` does: it expands a leading ~ and refuses addresses."""

    syntactic_help = "a path"

    def __init__(self, name: str, result: bool, suffixes: Sequence[str]):
        self.name = name
        self.result = result
        self.suffixes = suffixes

    def parse(self, argument: str) -> str:
        if not argument:
            raise UserError(f"--{self.name} is empty: is a shell variable not set?")
        if argument.startswith("--"):  # the next flag, as absl gives it to one without a value
            raise UserError(
                f"--{self.name} needs a value, and {argument} follows it; for a file of that name "
                f"write ./{argument}"
            )
        path = local_path(argument)
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            ends = ", ".join(self.suffixes)
            raise UserError(f"--{self.name}={argument}: name a file that ends in one of {ends}")
        if self.result:
            self._check_result(argument, path)
        return str(path)

    def _check_result(self, argument: str, path: Path) -> None:
        if path.is_dir():
            raise UserError(f"--{self.name}={argument} is a folder: name a file in it")
        if files.is_special(path):  # It is not replaced, so its folder need not be writable.
            return
        if why := files.obstacle(path.parent, made=False):
            raise UserError(f"--{self.name}={argument} could not be written at the end: {why}")

    def flag_type(self) -> str:
        return "path"


def define_path(
    name: str,
    default: str | None,
    help_: str,
    values: flags.FlagValues = flags.FLAGS,
    *,
    result: bool = False,
    suffixes: Sequence[str] = (),
) -> flags.FlagHolder:
    """Defines a flag that names a file or a folder on this machine's file systems.

    With `result` it is a file that is written at the end. Its folder must then be there at the
    beginning, so that no computed result is lost to a misspelt name. With `suffixes` its name must
    end in one of them.
    """
    parser, serializer = _PathParser(name, result, suffixes), flags.ArgumentSerializer()
    return flags.DEFINE(parser, name, default, help_, values, serializer=serializer)


def run(
    main: Callable[[list[str]], int | None],
    *,
    takes_files: bool = False,
    required: Sequence[str] = (),
    instead_of_config: Sequence[str] = (),
) -> None:
    """Parses the flags, runs `main(files)` and exits with what it returns (None: 0).

    After a mistake of the user it prints one line on stderr and exits with 1. With --help it prints
    the command's docstring and flags and exits with 0.

    Args:
        main: the command, which is called with the arguments that are not flags and returns the
            exit status.
        takes_files: whether arguments without dashes are allowed.
        required: the names of the flags that must be given.
        instead_of_config: the names of flags that may be given instead of a configuration.
    """

    def set_up_main(argv):
        settings.set_up_command()
        return main(argv[1:])

    process.begin()
    try:
        app.run(
            set_up_main,
            flags_parser=lambda argv: _parse(argv, takes_files, required, instead_of_config),
        )
    except UserError as error:
        distributed.end_if_lost(error)
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:
        distributed.end_if_lost(error)
        if line := failures.explain(error):
            print(f"error: {line}", file=sys.stderr)
        elif jax.distributed.is_initialized():
            traceback.print_exc()
        else:
            raise
    distributed.leave(1)


def _parse(
    argv: list[str], takes_files: bool, required: Sequence[str], instead_of_config: Sequence[str]
) -> list[str]:
    if {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"} & set(argv[1:]):
        print(help_text(required))
        if "--helpfull" in argv:
            print(flags.FLAGS.get_help())
        sys.exit(0)
    try:
        argv = _with_present_names(argv)
        _check_overrides(argv)
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if len(rest) > 1 and not takes_files:
        raise UserError(f"unexpected argument '{rest[1]}': {_as_flag(rest[1])}")
    if "config" in flags.FLAGS:
        flag = flags.FLAGS["config"]
        if flag.value is not None:
            flag.value = freeze(flag.value, f"configuration '{flag.config_filename}'")
        elif not any(flags.FLAGS[name].value for name in instead_of_config):
            raise UserError("no configuration: give one, e.g. --config=configs/default.py")
    for name in required:
        if flags.FLAGS[name].value is None:
            raise UserError(f"--{name} is missing: {flags.FLAGS[name].help}")
    return rest


def help_text(required: Sequence[str] = ()) -> str:
    """Returns the docstring of the command that runs, and its flags without those of libraries."""
    own = {"help": ("--help", "Show this and exit; --helpfull adds the flags of the libraries.")}
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module == sys.argv[0] or module.partition(".")[0] in ("alexnet_jax", "experiments"):
            own |= {flag.name: (_written(flag), _described(flag, required)) for flag in defined}
    if "config" in own:
        field = "Override a field of the configuration; configs/base.py names their files."
        own["config."] = ("--config.FIELD=VALUE", field)
    width = max(len(written) for written, _ in own.values()) + 4
    lines = [
        textwrap.fill(
            text, 80, initial_indent=f"  {written}".ljust(width), subsequent_indent=" " * width
        )
        for _, (written, text) in sorted(own.items())
    ]
    about = (sys.modules["__main__"].__doc__ or "").strip()
    return "\n".join([about, "", "Options:", *lines])


def _written(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    if flag.name == "config":
        return "--config=FILE"
    values = getattr(flag.parser, "enum_values", None)
    return f"--{flag.name}={'|'.join(values) if values else flag.flag_type().upper()}"


def _described(flag: flags.Flag, required: Sequence[str]) -> str:
    text = flag.help.partition(">: ")[2] or flag.help  # absl puts an enum's values before it
    if flag.name in required:
        return f"{text} Required."
    return text if flag.default in (None, False, "") else f"{text} Default: {flag.default}."


def _as_flag(argument: str) -> str:
    """Returns a suggestion for how an argument without dashes was probably meant."""
    name, equals, _ = argument.partition("=")
    known = flags.FLAGS
    if name in known:
        return f"write --{argument}" + ("" if equals or known[name].boolean else "=VALUE")
    if equals and "config" in known and name in SCHEMA:
        return f"write --config.{argument}"
    path = Path(argument)
    if "config" in known and path.suffix == ".py":
        return f"write --config={argument}"
    if "weights" in known and (path.suffix or (path / "weights.json").exists()):
        return f"write --weights={argument}"
    if "workdir" in known and (len(path.parts) > 1 or path.is_dir()):
        return f"write --workdir={argument}"
    return "options are written --name=value; --help lists them"


def _with_present_names(argv: list[str]) -> list[str]:
    """Expands flag files, and replaces names of fields from earlier commits by the present ones."""
    argv = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        dashes, config, field = flag.partition("config.")
        if config and dashes in ("-", "--"):
            argv[i] = f"--config.{present_name(field)}{equals}{value}"
    return argv


def _check_overrides(argv: list[str]) -> None:
    """Checks that every field which `argv` overrides exists."""
    for argument in argv:
        flag = argument.lstrip("-").partition("=")[0]
        field = flag.removeprefix("config.")
        if argument.startswith("-") and flag != field and field not in SCHEMA:
            raise UserError(f"unknown field --config.{field}; {nearest(field, SCHEMA)}")
