"""Every configuration loads, is whole, and runs on data of its shape."""

import re
from pathlib import Path

import jax
import pytest

from alexnet_jax import models, optim
from alexnet_jax.assemble import make_model
from alexnet_jax.config import flatten, load_config
from tests.tiny import ROOT

FILES = sorted(path.name for path in (ROOT / "configs").glob("[!_]*.py"))
PARAMETERS = {
    "imagenet2012.py": 60_965_224,
    "imagenet2012_net145.py": 60_965_224,
    "imagenet2012_owt.py": 61_100_840,
    "cifar_80sec.py": 145_578,
    "cifar_19pct.py": 89_578,
    "cifar_18pct.py": 89_578,
    "cifar_13pct.py": 1_116_490,
    "cifar_11pct.py": 2_112_970,
}


@pytest.mark.parametrize("name", FILES)
def test_every_configuration_has_the_fields_of_the_base_and_fits_its_net(name):
    config = load_config(ROOT / "configs" / name)
    assert flatten(config).keys() == flatten(load_config(ROOT / "configs/base.py")).keys()
    classes = 1000 if "imagenet" in config.data.name and "ette" not in config.data.name else 10
    model = make_model(config, classes)
    size = config.data.image_size
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, size, size, 3)))
    layers = list(shapes["params"])
    spec = optim.OptimSpec(**config.optim)
    optim.check(spec, layers)
    assert optim.unreached(spec, config.num_epochs) == []
    short = optim.make_schedule(spec, steps_per_epoch=10, total_steps=20)
    assert 0 < float(short(19)) < 1.01 * spec.learning_rate  # --config.num_epochs=2
    if name in PARAMETERS:
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


def test_every_field_of_the_base_has_its_line():
    for line in (ROOT / "configs/base.py").read_text().splitlines():
        if re.match(r"    \w+\.\w+ = ", line) and "ConfigDict()" not in line:
            assert "  # " in line, line


def test_every_field_of_the_base_is_read():
    """A field is read by name, or is the field of a dataclass that a whole section becomes."""
    code = "".join(path.read_text() for path in (ROOT / "alexnet_jax").rglob("*.py"))
    for name in flatten(load_config(ROOT / "configs/base.py")):
        field = name.rsplit(".", 1)[-1]
        assert re.search(rf"\b{field}\b", code), name


def test_optim_section_is_the_fields_of_its_spec():
    config = load_config(ROOT / "configs/base.py")
    assert set(config.optim) == {field for field in optim.OptimSpec.__dataclass_fields__}


def test_model_section_is_the_fields_of_the_module():
    config = load_config(ROOT / "configs/base.py")
    fields = set(models.AlexNet.__dataclass_fields__) - {"layers", "placement", "parent", "name"}
    assert set(config.model) - {"name"} == fields


def test_readme_names_every_configuration():
    text = (ROOT / "README.md").read_text()
    for name in FILES:
        assert Path(name).stem in text, name
