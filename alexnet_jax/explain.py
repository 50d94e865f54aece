"""Writes a page that follows a picture through a net, from edges to an answer.

python -m alexnet_jax.explain photo.jpg --out=DIR [--workdir=RUN | --weights=NAME|FILE]
    [--data_dir=DIR]

DIR/index.html contains its pictures. It shows the photograph as the net reads it, the strongest
maps of each layer, the pictures of the net's data set that excite its strongest units most, the
answer of each half of a net in two towers, the answers, and the parts of the picture on which they
rest. --data_dir is the folder of TFDS's data sets, or of the images, if they have moved; without
the data set, the page leaves its pictures out.
"""

from pathlib import Path

from absl import flags

from alexnet_jax import cli, console, evaluate
from alexnet_jax.console.progress import counter
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError, local_path, writing
from alexnet_jax.explained import sections
from alexnet_jax.explained.seen import look
from alexnet_jax.records import files
from alexnet_jax.trained import net_folder, pictures

MOST = 2000  # the largest number of pictures of the set that are searched


def the_set(path: str, data_dir: str) -> tuple[list[pictures.Picture], str]:
    """Finds the pictures on which the net at `path` was evaluated.

    Returns:
        At most `MOST` of them, evenly spread, and a line that says which they are, or why there are
        none.
    """
    try:
        spec = evaluate.moved(net_folder.read_trained(path)[0].data, data_dir)
        source = open_source(spec.name, spec.data_dir, spec.eval_split, download=False)
    except UserError as error:
        return [], f"The data set is not at hand ({error}): --data_dir names its place."
    found = pictures.in_source(source)
    chosen = found[:: -(-len(found) // MOST)]
    return (
        chosen,
        f"{len(chosen):,} pictures of {spec.name}, {spec.eval_split}, were looked through.",
    )


def explain(path: str, file: str, out: str, data_dir: str = "") -> Path:
    """Writes the page about a picture in the net at `path` to the folder `out`; returns the file.

    Raises:
        UserError: `look` raises it, or `out` cannot be written, or has a page of something else.
    """
    target = local_path(out) / "index.html"
    if why := files.obstacle(target.parent):
        raise UserError(f"--out={out} cannot be written: {why}")
    if target.exists() and sections.TITLE not in target.read_text("utf-8", "replace"):
        raise UserError(f"'{target}' is there, and is no page of explain: name another --out")
    seen, encoded = look(path, file)
    with counter() as progress:
        progress("looking through the data set", 0, 0)
        chosen, about = the_set(path, data_dir)
        text = sections.page_of(seen, encoded, chosen, about)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        files.replace(target, text.encode("utf-8", "backslashreplace"))
    console.say(about)
    return target


def main(given_files):
    """Makes the page of one picture."""
    if len(given_files) != 1:
        raise UserError(f"name one picture after the options, not {len(given_files)}")
    given = flags.FLAGS
    target = explain(pictures.net_path(), given_files[0], given.out, given.data_dir)
    console.say(f"page: {target}")


if __name__ == "__main__":
    pictures.define_flags()
    cli.define_path("out", None, "The folder to write.")
    flags.DEFINE_string("data_dir", "", "The folder of the net's data, if they have moved.")
    cli.run(main, takes_files=True, required=("out",))
