"""Every snippet of README.md and docs/*.md: commands are run on a tiny net and its pictures, as
written but for names of files; those that need what isn't here have their flags read; Python is run
in one process. What the pages link to is there."""

import re
import shlex
import subprocess

import jax
import pytest

from tests import tiny

TEXTS = {page: page.read_text() for page in tiny.PAGES}
SNIPPETS = [
    (language, body)
    for text in TEXTS.values()
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
SHELL = [body for language, body in SNIPPETS if language == "bash"]
PYTHON = [body for language, body in SNIPPETS if language == "python"]
COMMAND = re.compile(r"python -m ((?:alexnet_jax|experiments)\.\S+)([^\n&#]*)")
# Each once, though it may stand on several pages.
COMMANDS = list(
    dict.fromkeys(
        (module, " ".join(arguments.split()))
        for body in SHELL
        for module, arguments in COMMAND.findall(body.replace("\\\n", " "))
    )
)
# Where these stand, a command needs what isn't here: files of others, GPUs, hours, the network.
ELSEWHERE = ("../shared", "nets/", "imagenet2012", "--data=photos", "configs/default.py")
RUN = [
    (module, arguments)
    for module, arguments in COMMANDS
    if module.startswith("alexnet_jax.") and not any(word in arguments for word in ELSEWHERE)
]
READ = [command for command in COMMANDS if command not in RUN]


def test_most_commands_are_run():
    tools = {module.removeprefix("alexnet_jax.") for module, _ in RUN}
    assert tools >= {"main", "evaluate", "check_data", "classify", "features", "export"}
    read = {module for module, _ in READ}
    assert read >= {"alexnet_jax.bench", "experiments.sweep", "experiments.figures"}


def test_every_snippet_has_a_language_that_is_tried():
    assert {language for language, _ in SNIPPETS} <= {"bash", "python", "text"}
    for body in SHELL:
        done = subprocess.run(["bash", "-n"], input=body, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


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
    read = [(module, *shlex.split(arguments)) for module, arguments in READ]
    (folder / "outputs").mkdir()
    with tiny.unoptimised():
        said = tiny.commands([*lines, *read], folder / "outputs", read=len(read))
    outs += [folder] * len(read)
    return dict(zip([*RUN, *READ], zip(said, outs, strict=True), strict=True))


@pytest.mark.parametrize("command", RUN, ids=[" ".join(each) for each in RUN])
def test_a_pages_command(command, done):
    said, out = done[command]
    assert said.returncode == 0, said.stderr
    for name in re.findall(r"--(?:out|plot)=(\S+)", command[1]):
        assert (out / name).stat().st_size > 0


@pytest.mark.parametrize("command", READ, ids=[" ".join(each) for each in READ])
def test_the_flags_of_a_pages_command(command, done):
    said, _ = done[command]
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("snippet", PYTHON, ids=[body.splitlines()[0] for body in PYTHON])
def test_a_pages_python(snippet, trained):
    text = re.sub(r"runs/\w+", str(trained.workdir), snippet)
    skipped = ("conv2", "conv3", "conv4", "conv5")
    small = f"num_classes=10, width=0.125, hidden_units=64, skip={skipped}"
    text = text.replace("num_classes=1000", small)
    names = {}
    exec(text, names)
    for name in ("logits", "probabilities"):
        assert jax.numpy.isfinite(names.get(name, 0.0)).all()
