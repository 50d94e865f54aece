"""Every configuration loads, is whole, and runs on data of its shape; every field counts."""

import ast
import inspect
import json
import re
import shutil

import jax
import pytest

from alexnet_jax import config as configuration
from alexnet_jax import models, optim
from alexnet_jax.assemble import make_model, resolve, suited
from alexnet_jax.config import (
    NEVER,
    SCHEMA,
    SECTIONS,
    Config,
    check_same_run,
    flatten,
    freeze,
    load_config,
    override,
    read_config,
    shipped,
    to_dict,
)
from alexnet_jax.configs import base
from alexnet_jax.errors import UserError
from tests.tiny import PAGES, ROOT

PARAMETERS = {
    "imagenet2012": 60_965_224,
    "imagenet2012_net145": 60_965_224,
    "imagenet2012_owt": 61_100_840,
    "cifar_80sec": 145_578,
    "cifar_19pct": 89_578,
    "cifar_18pct": 89_578,
    "cifar_13pct": 1_116_490,
    "cifar_11pct": 2_112_970,
}
# The classes in which fields are declared, by the section that has them in files.
DECLARED = [Config, models.AlexNet, *(type(getattr(Config(), name)) for name in SECTIONS)]


@pytest.mark.parametrize("name", shipped())
def test_every_configuration_fits_its_net(name):
    config = suited(load_config(name), 1000)
    classes = 1000 if "imagenet" in config.data.name and "ette" not in config.data.name else 10
    model = make_model(config, classes)
    size = config.data.image_size
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, size, size, 3)))
    optim.check(config.optim, list(shapes["params"]))
    assert optim.unreached(config.optim, config.num_epochs) == []
    short = optim.make_schedule(config.optim, steps_per_epoch=10, total_steps=20)
    assert 0 < float(short(19)) < 1.01 * config.optim.learning_rate  # --config.num_epochs=2
    if name in PARAMETERS:
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


def test_the_base_is_the_schema():
    assert freeze(base.get_config()) == Config() == load_config("imagenet2012")
    assert flatten(Config()).keys() == SCHEMA.keys()


def test_every_field_has_its_line():
    for spec in DECLARED:
        lines = "" if spec is type(Config().model) else inspect.getsource(spec)  # AlexNet's, made
        for field in re.findall(r"^    (\w+: .+? = (?!field).+)", lines, re.MULTILINE):
            assert "  # " in field or "Placement()" in field, field


# Where each spec's fields are read: how it is called there, in which modules of alexnet_jax.
READERS = {
    "": (r"(.*\.)?config", "**/*.py"),
    "data": (r"(.*\.)?spec", "data/*.py"),
    "preprocess": (r"spec|config\.preprocess", "[ap][sr]*.py"),
    "model": (r"(self|model|(.*\.)?config\.model)", "models/*.py"),
    "optim": (r"(spec|(.*\.)?config\.optim)", "optim.py"),
    "mesh": (r"spec", "parallel.py"),
}


def unread(spec, fields):
    """Those of a spec's fields that no expression reads from something called as it is."""
    called, modules = READERS[spec]
    trees = (ast.parse(path.read_text()) for path in (ROOT / "alexnet_jax").glob(modules))
    reads = (
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    )
    return set(fields) - {
        node.attr for node in reads if re.fullmatch(called, ast.unparse(node.value))
    }


def test_every_field_is_read():
    for spec in READERS:
        fields = vars(getattr(Config(), spec)) if spec else vars(Config()).keys() - SECTIONS.keys()
        # The preset's name and module are arguments of models.create.
        assert unread(spec, fields) <= ({"name", "module"} if spec == "model" else set()), spec
        assert unread(spec, {*fields, "label_smoothing"}) >= {"label_smoothing"}


def test_values_of_another_type_and_unknown_fields_are_refused(tmp_path):
    with pytest.raises(TypeError):
        override(Config(), {"batch_size": "many"})
    with pytest.raises(KeyError):
        override(Config(), {"optim.label_smoothing": 0.1})
    own = tmp_path / "own.py"
    own.write_text(
        "from alexnet_jax.configs import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        "    config.optim.learning_rat = 0.1\n"
        "    return config\n"
    )
    with pytest.raises(UserError, match=r"optim\.learning_rat; did you mean 'optim\.learning_rate"):
        load_config(own)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.seed = None", r"seed=None: must be int"),
        ("config.data.crop = None", r"data\.crop=None: must be bool"),
        ("config.optim.drop_factor = float('inf')", r"optim\.drop_factor=inf: must be a finite"),
        ("config.data.scale = float('nan')", r"data\.scale=nan: must be a finite"),
        ("return {'per_class': 'no'}", r"per_class='no': must be bool"),
        ("return {'batch_size': 64.0}", r"batch_size=64\.0: must be int or None"),
    ],
)
def test_a_file_is_held_to_the_types_of_the_fields(tmp_path, line, message):
    """The flags check the command line, but a ConfigDict takes None, and a dict anything."""
    own = tmp_path / "own.py"
    own.write_text(
        "from alexnet_jax.configs import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        f"    {line}\n"
        "    return config\n"
    )
    with pytest.raises(UserError, match=rf"^configuration '.*own\.py': {message}"):
        load_config(own)


def test_a_value_of_another_type_in_config_json_names_the_file(tmp_path):
    fields = to_dict(Config()) | {"per_class": "no"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"config\.json': per_class='no': must be bool"):
        read_config(tmp_path)


def test_lists_are_tuples_at_any_depth():
    rates = override(Config(), {"optim.layer_rates": (["conv1", 0, 5],)}).optim.layer_rates
    assert rates == (("conv1", 0, 5),)


def test_names_and_values_of_earlier_commits_are_read(trained, tmp_path, capsys):
    configuration._say_renamed.cache_clear()
    configuration._say_zero.cache_clear()
    config = read_config(trained.workdir)
    old = to_dict(config)
    old["optim"]["dexp_steps"] = old["optim"].pop("dexp_stages") + 2
    for name in ("num_train_steps", "eval_every_steps", "checkpoint_every_steps"):
        assert old[name] is None
        old[name] = 0
    old["data"]["resize_size"] = 0
    del old["init_from"]
    shutil.copytree(trained.workdir, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(old))
    fields = {"optim.dexp_stages": config.optim.dexp_stages + 2, "data.resize_size": None}
    assert read_config(tmp_path / "run") == override(config, fields)
    said = "the field optim.dexp_steps is called optim.dexp_stages now\n"
    assert capsys.readouterr().out == said

    own = tmp_path / "own.py"
    own.write_text(
        "from alexnet_jax.configs import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        "    config.optim.dexp_steps = 6\n"
        "    config.eval_every_steps = 0\n"
        "    return config\n"
    )
    assert load_config(own) == override(load_config("default"), {"optim.dexp_stages": 6})
    said = capsys.readouterr().out
    assert said == "eval_every_steps=0 is read as None, which it meant formerly\n"


def test_a_run_is_compared_with_all_that_it_was_started_with(trained):
    config = read_config(trained.workdir)
    assert config == resolve(config, make_model(config, 4))
    check_same_run(override(config, {"eval_every_steps": NEVER, "mesh.model": 2}), trained.workdir)
    with pytest.raises(UserError, match=r"data\.scale \(was 0\.015625, now 1\.0\)"):
        check_same_run(override(config, {"data.scale": 1.0}), trained.workdir)


def test_pages_name_every_configuration():
    text = "".join(page.read_text() for page in PAGES)
    for name in shipped():
        assert name in text, name
