"""The commands of README.md and docs/*.md, as written but for names of files, are run on a tiny net
and its pictures; what the pages link to is there."""

import re
import shlex

import pytest

from tests import tiny

TEXTS = {page: page.read_text() for page in tiny.PAGES}
COMMAND = re.compile(r"^python -m (alexnet_jax\.\S+) (.*?)(?: +#.*)?$", re.MULTILINE)
# Each once, though it may stand on several pages.
COMMANDS = list(dict.fromkeys(each for text in TEXTS.values() for each in COMMAND.findall(text)))
# Where these stand, a command needs what isn't here: files of others, GPUs, hours, the network.
ELSEWHERE = ("../shared", "nets/", "imagenet2012", "…", "--data=photos")
RUN = [command for command in COMMANDS if not any(word in command[1] for word in ELSEWHERE)]


def test_most_commands_are_run():
    tools = {module.removeprefix("alexnet_jax.") for module, _ in RUN}
    assert tools >= {"main", "evaluate", "check_data", "classify", "features", "export"}


def anchors(text):
    """The fragments that a page's headings can be linked by, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_its_heading():
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue  # another site's
            path, _, fragment = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if fragment:
                assert fragment in anchors(file.read_text()), f"{page.name}: {target}"


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
def test_a_pages_command(command, done):
    said, out = done[command]
    assert said.returncode == 0, said.stderr
    for name in re.findall(r"--(?:out|plot)=(\S+)", command[1]):
        assert (out / name).stat().st_size > 0
