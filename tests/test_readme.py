"""The README's commands, as written but for names of files: run on a tiny net and its pictures."""

import re
import shlex

import pytest

from tests import tiny

COMMANDS = re.findall(
    r"^python -m (alexnet_jax\.\S+) (.*?)(?: +#.*)?$",
    (tiny.ROOT / "README.md").read_text(),
    re.MULTILINE,
)
# Where these stand, a command needs what isn't here: files of others, GPUs, hours, the network.
ELSEWHERE = ("../shared", "nets/", "imagenet2012", "…", "--data=photos")
RUN = [command for command in COMMANDS if not any(word in command[1] for word in ELSEWHERE)]


def test_most_commands_are_run():
    tools = {module.removeprefix("alexnet_jax.") for module, _ in RUN}
    assert tools >= {"main", "evaluate", "check_data", "classify", "features", "export"}


@pytest.fixture(scope="module")
def done(trained, tmp_path_factory):
    """What each of the commands said, and the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("readme")
    lines, outs = [], []
    for number, (module, arguments) in enumerate(RUN):
        out = folder / f"out{number}"
        out.mkdir()
        words = {
            r"configs/\w+\.py": str(trained.config_file),
            "folder:PATH": f"folder:{trained.images}",
            r"init_from=runs/\w+": f"init_from={trained.workdir}",
            r"runs/\w+": str(out / "new" if module.endswith("main") else trained.workdir),
            r"photo\.jpg": str(trained.images / "test" / "coffee" / "00.png"),
            "holiday/": str(trained.images / "test" / "rocket"),
            "--(out|plot)=": rf"--\1={out}/",
        }
        for pattern, value in words.items():
            arguments = re.sub(pattern, value, arguments)
        lines.append((module, *shlex.split(arguments)))
        outs.append(out)
    (folder / "outputs").mkdir()
    said = tiny.commands(lines, folder / "outputs")
    return dict(zip(RUN, zip(said, outs, strict=True), strict=True))


@pytest.mark.parametrize("command", RUN, ids=[" ".join(each) for each in RUN])
def test_the_readmes_command(command, done):
    said, out = done[command]
    assert said.returncode == 0, said.stderr
    for name in re.findall(r"--(?:out|plot)=(\S+)", command[1]):
        assert (out / name).stat().st_size > 0
